"""A meeting that tells another one of everything: the base of those that look on, or step in."""

from __future__ import annotations

from qtrace.lockstep.driver import Meeting
from qtrace.probe import Enter, Exit, Replacement


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
