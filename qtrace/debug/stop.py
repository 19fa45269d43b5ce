"""One meeting of both sides, at the entry or the exit of a call, as a debugger looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qtrace.debug.breakpoints import ENTER, EXIT
from qtrace.engine.comparison import Comparison
from qtrace.engine.driver import CANDIDATE, REFERENCE
from qtrace.engine.events import Call, Enter, Exit
from qtrace.engine.forcing import IN, OUT
from qtrace.engine.leaves import LeafPair, argument_leaves, match_arguments
from qtrace.engine.met import Met, place
from qtrace.engine.pair import Pair, PairComparer

NAMES = ("reference", "candidate")


@dataclass(slots=True)
class Stop:
    """A meeting: what the comparison has noted of it, and the events of both sides."""

    comparison: Comparison
    met: Met
    reference: Enter | Exit
    candidate: Enter | Exit
    comparer: PairComparer

    @property
    def event(self) -> str:
        """Return "enter" or "exit"."""
        return ENTER if isinstance(self.reference, Enter) else EXIT

    @property
    def call(self) -> Call:
        """Return the reference's call."""
        return self.reference.call

    @property
    def mark(self) -> str:
        """Return how the comparison tells arguments from outputs."""
        return IN if self.event == ENTER else OUT

    @property
    def events(self) -> tuple[Enter | Exit, Enter | Exit]:
        """Return the events of both sides."""
        return self.reference, self.candidate

    def __str__(self) -> str:
        number = f"#{self.call.index}" if self.call.index else ""
        return f"{self.call.path or '<root>'}:{self.event}{number}"

    def error(self) -> tuple[str, BaseException] | None:
        """Return which side's call raised, and what."""
        for side in (REFERENCE, CANDIDATE):
            event = self.events[side]
            if isinstance(event, Exit) and event.error is not None:
                return NAMES[side], event.error
        return None

    def leaf_pairs(self) -> list[LeafPair]:
        """Return the leaves that stand against each other: of the arguments at an entry, of the outputs at an exit."""
        if isinstance(self.reference, Enter) and isinstance(self.candidate, Enter):
            return self.arguments(self.reference, self.candidate)
        if self.error() is not None:
            return []
        values: list[Any] = [event.value for event in self.events if isinstance(event, Exit)]
        return argument_leaves("", values[REFERENCE], values[CANDIDATE])

    @staticmethod
    def arguments(reference: Enter, candidate: Enter) -> list[LeafPair]:
        """Return the leaves of the arguments of two calls."""
        matched = match_arguments(reference.arguments, candidate.arguments)
        return [leaf for name, mine, theirs in matched for leaf in argument_leaves(name, mine, theirs)]

    def compared(self) -> Iterator[tuple[str, Any, Any, Pair | None]]:
        """Yield the leaves with their comparison, which is None for two equal plain values."""
        for name, mine, theirs in self.leaf_pairs():
            yield name, mine, theirs, self.comparer.compare(mine, theirs)

    def agrees(self, name: str, pair: Pair) -> bool:
        """Return whether a pair of this meeting is the same up to rounding, a layout or a mask's fill."""
        depth = self.call.entry if self.event == ENTER else self.call.order
        return self.comparison.agrees(pair, depth, place(self.met, self.mark, name))

    def differing(self) -> list[tuple[str, Pair]]:
        """Return the pairs that do not agree; a tensor that one side leaves out beside others counts as agreeing."""
        pairs = self.met.arguments if self.event == ENTER else self.met.outputs
        others = self.event == EXIT and any(pair.measurement is not None for _, pair in pairs)
        return [
            (name, pair) for name, pair in pairs if not self.agrees(name, pair) and not (others and _is_left_out(pair))
        ]


def _is_left_out(pair: Pair) -> bool:
    kinds = [spec.type if spec is not None else None for spec in (pair.reference, pair.candidate)]
    return pair.measurement is None and kinds.count("NoneType") == 1
