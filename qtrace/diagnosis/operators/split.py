"""Where two graphs of values part: from the outputs that differ back to the last values that agree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from qtrace.diagnosis.operators.graph import Kind, Recording, Value

# Whether the other side holds a value as well.
Agrees = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Parting:
    """One side's values where it parts from the other, in the order in which they were made.

    `held` are the values returned that the other side holds as well, though not as this output.
    """

    values: tuple[int, ...]
    held: tuple[int, ...]

    @property
    def first(self) -> int | None:
        """The first of the values."""
        return self.values[0] if self.values else None

    @property
    def left_out(self) -> bool:
        """Whether the side returns what the other one holds: what that does with it is left out here."""
        return self.first in self.held


def parting(recording: Recording, outputs: Collection[int], agrees: Agrees) -> Parting:
    """Return the first values on the way to the outputs that differ which the other side does not hold.

    A value is on the way if one can go from it to such an output over values that do not agree; what agrees again
    later is nobody's concern. An output that differs is on the way in any case, though the other side may hold the
    same. A value is a first one if nothing that it is made of is on the way itself. What comes from one differing
    argument alone (a mask in another shape), or from parameters alone, is not computed wrongly here: the first one is
    then the operator that mixes it with something else.
    """
    alone = _alone(recording, agrees)
    found = _first(recording, outputs, agrees, alone)
    return found if found.values else _first(recording, outputs, agrees, frozenset())


def _first(recording: Recording, outputs: Collection[int], agrees: Agrees, passed_by: Collection[int]) -> Parting:
    seen: set[int] = set()
    first: list[int] = []
    todo = list(outputs)
    while todo:
        index = todo.pop()
        returned = index in outputs and recording.values[index].kind is Kind.OPERATOR
        if index in seen or not (returned or _is_open(recording.values[index], agrees)) or index in passed_by:
            continue
        seen.add(index)
        behind = [i for i in recording.inputs_of(index) if i not in passed_by]
        behind = [i for i in behind if _is_open(recording.values[i], agrees)]
        if not behind:
            first.append(index)
        todo += behind
    return Parting(tuple(sorted(first)), tuple(i for i in outputs if agrees(i)))


def _is_open(value: Value, agrees: Agrees) -> bool:
    return value.kind is Kind.OPERATOR and not value.is_empty and not agrees(value.index)


def _alone(recording: Recording, agrees: Agrees) -> frozenset[int]:
    """Return the values that hold nothing but one kind of what came in and does not agree, or constants."""
    # What each value is made of; None for one that has been mixed.
    sources: dict[int, frozenset[Kind] | None] = {}
    for value in recording.values:
        if value.kind is not Kind.OPERATOR:
            sources[value.index] = None if agrees(value.index) else frozenset({value.kind})
        elif agrees(value.index):
            sources[value.index] = None if value.sketch is None or value.sketch.varies else frozenset()
        else:
            sources[value.index] = _together(sources[i] for i in recording.inputs_of(value.index))
    # Varying values made of nothing that came in were computed here: a mask, a table of positions.
    return frozenset(
        value.index
        for value in recording.values
        if value.kind is Kind.OPERATOR
        and (kinds := sources[value.index]) is not None
        and (kinds or value.sketch is None or not value.sketch.varies)
    )


def _together(sources: Iterable[frozenset[Kind] | None]) -> frozenset[Kind] | None:
    found: frozenset[Kind] = frozenset()
    for one in sources:
        if one is None:
            return None
        found |= one
    return found if len(found) <= 1 else None
