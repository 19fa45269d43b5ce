"""The errors that qtrace raises on purpose, and the exit code of each.

A message is one sentence that states the error, the place, the expectation and the next step. Unusual *data* (NaN,
shapes that differ, a module without partner) never raises an exception: it is a status of a row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """The meaning of a command's exit code; the numbers are a contract with scripts and CI."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    GATE_FAILED = 3
    INCONCLUSIVE = 4
    INTERRUPTED = 130


class QtraceError(Exception):
    """Base class of all errors that qtrace raises on purpose; `exit_code` is the exit code of the command line."""

    exit_code: ExitCode = ExitCode.ERROR


class UsageError(QtraceError):
    """The request is invalid: options, a config key, a pattern, the form of a spec."""

    exit_code = ExitCode.USAGE


class SourceError(QtraceError):
    """A named model, wrapper or input could not be loaded: file, callable, toolkit or weights."""


class OutputError(QtraceError):
    """A result could not be written to the requested place."""


class ForwardError(QtraceError):
    """A model raised, or was interrupted, while it was traced.

    `side` is "reference" or "candidate", `module` the path of the innermost module that was running (in that side's own
    names), `report` holds the comparison until then. The model's own exception is `__cause__`.
    """

    def __init__(self, message: str, *, side: str, module: str, report: object = None) -> None:
        super().__init__(message)
        self.side = side
        self.module = module
        self.report = report


class Interrupted(QtraceError):
    """Ctrl-C while models were traced; `report` holds the comparison until then."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, message: str, *, report: object = None) -> None:
        super().__init__(message)
        self.report = report


def first_line(error: BaseException | None) -> str:
    """Return the first line of an exception's message; an empty text without a message.

    >>> first_line(ValueError("sizes differ\\n  at dim 1"))
    'sizes differ'
    """
    return (str(error).strip().splitlines() or [""])[0]


def near(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Return the known names most similar to a mistyped one, best first.

    >>> near("refernce", ["reference", "candidate", "inputs"])
    ['reference']
    """
    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that proposes the most similar known names, or lists them when few.

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
