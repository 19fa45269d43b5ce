"""Tells a debugger of every meeting, after the comparison has looked at it."""

from __future__ import annotations

from collections.abc import Callable

from qtrace.debug.stop import Stop
from qtrace.engine.around import Around
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import Enter, Exit, Replacement
from qtrace.engine.met import Met
from qtrace.tree import tensors


class Stopping(Around):
    """Asks `met` what the candidate goes on with from each meeting; that is where it may stop."""

    def __init__(self, comparison: Comparison, met: Callable[[Stop, Replacement | None], Replacement | None]) -> None:
        super().__init__(comparison)
        self._comparison = comparison
        self._met = met
        self._open: list[Met] = []

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        """Compare, then ask."""
        reply = super().entered(reference, candidate)
        met = self._comparison.met[-1]
        # Whoever works in place may have its return value ignored: then what it wrote to is handed over.
        met.argument_ids = {id(tensor) for _, tensor in tensors(candidate.arguments.values)}
        self._open.append(met)
        return self._met(self._stop(met, reference, candidate), reply)

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        """Compare, then ask."""
        reply = super().left(reference, candidate)
        return self._met(self._stop(self._open.pop(), reference, candidate), reply)

    def _stop(self, met: Met, reference: Enter | Exit, candidate: Enter | Exit) -> Stop:
        # What was compared is compared again where it is asked for, and in the same way.
        return Stop(self._comparison, met, reference, candidate, type(self._comparison.comparer)())
