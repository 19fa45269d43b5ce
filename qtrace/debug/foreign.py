"""Another debugger, where `PYTHONBREAKPOINT` names one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import FrameType
from typing import Any

VARIABLE = "PYTHONBREAKPOINT"
_OWN = ("", "pdb.set_trace")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one side stands: the frame of its own code that makes the call, that frame's locals, what was called.

    A stored side has no frame, and in place of locals what is recorded of the call.
    """

    frame: FrameType | None
    locals: dict[str, Any]
    module: str
    call: int


def is_off() -> bool:
    """Return whether breakpoints are switched off, as `breakpoint()` is by PYTHONBREAKPOINT=0."""
    return os.environ.get(VARIABLE) == "0"


def is_wanted() -> bool:
    """Return whether another debugger than pdb is to be opened."""
    return not is_off() and os.environ.get(VARIABLE, "") not in _OWN


def stand(ref: Standing, cand: Standing, args: dict[str, Any], out: dict[str, Any]) -> None:
    """Open the debugger that PYTHONBREAKPOINT names; the four are its local names.

    `args` and `out` map names to (the reference's value, the candidate's).
    """
    breakpoint()
    # Debuggers that stop at the next line stop here, where the names are still known.
    return
