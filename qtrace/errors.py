"""Everything that qtrace raises on purpose, and the exit code that each error ends a command with.

A message is one sentence that says what went wrong, where, what was expected and what to do next. Odd
*data* (NaN, shapes that differ, a module without partner) is never an exception: it is a status on a row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code means; the numbers are a contract with scripts and CI."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    GATE_FAILED = 3
    INCONCLUSIVE = 4
    INTERRUPTED = 130


class QtraceError(Exception):
    """Root of all errors that qtrace raises on purpose; `exit_code` is what the command line ends with."""

    exit_code: ExitCode = ExitCode.ERROR


class UsageError(QtraceError):
    """What was asked for does not fit together: options, a config key, a pattern, the form of a spec."""

    exit_code = ExitCode.USAGE


class SourceError(QtraceError):
    """A model, wrapper or input that was named could not be had: file, callable, toolkit or weights."""


class OutputError(QtraceError):
    """A result could not be written where it was asked for."""


class ForwardError(QtraceError):
    """A model raised, or was interrupted, while it was traced.

    `side` is "reference" or "candidate", `module` the path of the innermost module that was running (in that
    side's own names), `report` holds what was compared until then. The model's own exception is `__cause__`.
    """

    def __init__(self, message: str, *, side: str, module: str, report: object = None) -> None:
        super().__init__(message)
        self.side = side
        self.module = module
        self.report = report


class Interrupted(QtraceError):
    """Ctrl-C while models were traced; `report` holds what was compared until then."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, message: str, *, report: object = None) -> None:
        super().__init__(message)
        self.report = report


def first_line(error: BaseException | None) -> str:
    """Return the first line of what an exception says; nothing where it says nothing.

    >>> first_line(ValueError("sizes differ\\n  at dim 1"))
    'sizes differ'
    """
    return (str(error).strip().splitlines() or [""])[0]


def near(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Return the known names nearest to a mistyped one, best first.

    >>> near("refernce", ["reference", "candidate", "inputs"])
    ['reference']
    """
    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error message that proposes the nearest known names, or lists them when few.

    >>> did_you_mean("refernce", ["reference", "candidate"])
    'did you mean reference?'
    >>> did_you_mean("zzz", ["tico", "dtype"])
    'known: dtype, tico'
    """
    names = sorted(set(known))
    matches = near(name, names)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    shown = ", ".join(names[:12])
    return f"known: {shown}{', …' if len(names) > 12 else ''}" if names else "none are known"
