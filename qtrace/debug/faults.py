"""Which meeting shows an error where it is made, as far as one pass can tell."""

from __future__ import annotations

from dataclasses import dataclass, field

from qtrace.debug.breakpoints import ENTER
from qtrace.debug.stop import Stop


@dataclass(slots=True)
class Faults:
    """Follows a pass, and tells faults from what only passes an error on.

    A call is at fault whose output differs although its arguments agree and so do the outputs of all that it called. A
    caller is at fault that hands on an argument that differs although its own agree and so do the outputs of all that
    it called before.
    """

    _affected: set[int] = field(default_factory=set)

    def is_at(self, stop: Stop) -> bool:
        """Return whether this meeting shows a fault; to be asked at each meeting, in order."""
        own, parent = id(stop.met), id(stop.met.parent)
        if not stop.differing() and stop.error() is None:
            return False
        if stop.event == ENTER:
            self._affected.add(own)
            return parent not in self._affected
        self._affected.add(parent)
        return own not in self._affected

    def healed(self, stop: Stop) -> None:
        """Forget what a meeting showed: the candidate goes on with the reference's tensors."""
        self._affected.discard(id(stop.met if stop.event == ENTER else stop.met.parent))
