"""A meeting that tells another one of everything: the base of those that look on, or step in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from qtrace.engine.driver import Meeting
from qtrace.engine.events import Enter, Exit, Replacement
from qtrace.engine.live_side import LiveSide

if TYPE_CHECKING:
    from qtrace.engine.comparison import Comparison


class EndRun(Exception):
    """Raised where two sides meet, to end the run there; it says why. What was compared until then is reported."""


class Attendant(Protocol):
    """Steps in where two sides meet, in each pass that it attends; see `qtrace.debug`."""

    def around(self, comparison: Comparison) -> Meeting:
        """Return who is told of the meetings in the comparison's place, and tells the comparison."""

    def attending(self, sides: tuple[LiveSide, LiveSide]) -> AbstractContextManager[None]:
        """Return what holds while both sides run, from before they start."""

    def warnings(self) -> list[str]:
        """Return what a reader of the report must know of what was done."""


class Around:
    """Hands all that it is told to `inner`, and returns what that returns."""

    def __init__(self, inner: Meeting) -> None:
        self.inner = inner

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        """Both sides are at the entry of the same call."""
        return self.inner.entered(reference, candidate)

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        """Both sides are at the exit of the same call."""
        return self.inner.left(reference, candidate)

    def alone(self, side: int, event: Exit) -> None:
        """A call of one side has found no partner."""
        self.inner.alone(side, event)
