"""Finds where two graphs of values part: from the outputs that differ back to the last values that agree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qtrace.diagnosis.operators.graph import Kind, Recorded, Recording, Value
from qtrace.diagnosis.operators.pairing import Match, Pairing, Tier
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import Relation

# Returns whether the other side holds a value as well.
Agrees = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Parting:
    """The values at which one side parts from the other, in the order in which they were made.

    `held` are the returned values that the other side holds as well, though not as this output.
    """

    values: tuple[int, ...]
    held: tuple[int, ...]

    @property
    def first(self) -> int | None:
        """The first of the values."""
        return self.values[0] if self.values else None

    @property
    def left_out(self) -> bool:
        """Whether the side returns a value that the other side holds: it leaves out the other's next operators."""
        return self.first in self.held


def parting(recording: Recording, outputs: Collection[int], agrees: Agrees) -> Parting:
    """Return the first values, on the way to the outputs that differ, that the other side does not hold.

    A value is on the way if a path leads from it to such an output over values that do not agree; a value that agrees
    again later ends the path. An output that differs is always on the way, though the other side may hold the same
    value. A value is a first one if none of the values that it is made of is on the way. A value made only of one
    differing argument (a mask in another shape), or only of parameters, is not computed wrongly here: then the first
    value is the result of the operator that mixes it with another one.
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
    """Return the values made only of constants, or of one kind of outside values that do not agree."""
    # The kinds of values that each value is made of; None for a mixed one.
    sources: dict[int, frozenset[Kind] | None] = {}
    for value in recording.values:
        if value.kind is not Kind.OPERATOR:
            sources[value.index] = None if agrees(value.index) else frozenset({value.kind})
        elif agrees(value.index):
            sources[value.index] = None if value.sketch is None or value.sketch.varies else frozenset()
        else:
            sources[value.index] = _together(sources[i] for i in recording.inputs_of(value.index))
    # A varying value made of no value from outside was computed here: a mask, a table of positions.
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


# These operators compute the same under different names.
_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "matmul", "linear"})


@dataclass(frozen=True, slots=True)
class Decision:
    """The place where the two sides part, and the last agreeing pair of values before it (None if there is none)."""

    pairing: Pairing
    reference: Parting
    candidate: Parting
    agreed: tuple[int, int] | None

    @property
    def left_out(self) -> tuple[bool, bool]:
        """Which side leaves operators out. If each returns a value that the other holds, neither side does."""
        mine, theirs = self.reference.left_out, self.candidate.left_out
        return mine and not theirs, theirs and not mine

    def relation(self) -> Relation | None:
        """Return the relation of the two values of the last pair; if one is a slice, with its index."""
        if self.agreed is None:
            return None
        mine, theirs = self.agreed
        found = [self.pairing.reference.get(mine), self.pairing.candidate.get(theirs)]
        related = [
            one.relation for one, value in zip(found, (theirs, mine), strict=True) if one and value in one.others
        ]
        sliced = (one for one in related if one is not None and "index" in one.parameters)
        return next(sliced, next(iter(related), None))


def decide(
    recordings: tuple[Recording, Recording],
    differing: tuple[Collection[int], Collection[int]],
    floors: Floors,
    depth: int,
    refuted: tuple[Container[int], Container[int]] = ((), ()),
) -> Decision:
    """Return where the two recordings part, on the way to the outputs that differ.

    A factor or another layout between the sides is first taken for a convention: a factor folded into a weight, or
    channels kept last, is no fault. But if then the same operator makes another result of inputs that differ by no
    more than that, it is no convention. In that case only values equal in the same order count as agreed.
    """
    pairing = Pairing(recordings[0].values, recordings[1].values, floors, depth, refuted)
    matches = pairing.reference, pairing.candidate
    loose, strict = (_parted(recordings, differing, matches, most) for most in (Tier.LAYOUT, Tier.SLICE))
    conventional = _is_convention(recordings, loose, pairing)
    mine, theirs = loose if conventional else strict
    most = Tier.LAYOUT if conventional else Tier.SLICE
    return Decision(pairing, mine, theirs, _last_agreed(recordings, (mine.first, theirs.first), pairing, most))


def _parted(
    recordings: tuple[Recording, Recording],
    differing: tuple[Collection[int], Collection[int]],
    matches: tuple[dict[int, Match], dict[int, Match]],
    most: Tier,
) -> tuple[Parting, Parting]:
    mine, theirs = (
        parting(recordings[side], differing[side], _agreeing(recordings[side], matches[side], most).__contains__)
        for side in (0, 1)
    )
    return mine, theirs


def _agreeing(recording: Recording, matches: Mapping[int, Match], most: Tier) -> set[int]:
    """Return the values of a side that agree; where a layout is ignored, also the views of these."""
    found = {value for value, match in matches.items() if match.tier <= most}
    if most >= Tier.LAYOUT:
        for operator in recording.operators:
            if operator.views and found.issuperset(operator.inputs) and operator.inputs:
                found.update(operator.outputs)
    return found


def _is_convention(recordings: tuple[Recording, Recording], found: tuple[Parting, Parting], pairing: Pairing) -> bool:
    """Return whether the two sides part for another reason than a factor or a layout between them."""
    mine, theirs = found
    held = [(pairing.reference, v) for v in mine.held] + [(pairing.candidate, v) for v in theirs.held]
    if any(v in matches and matches[v].tier > Tier.SLICE for matches, v in held):
        # The output differs, so the factor or the layout in which the other side holds the value is wrong here.
        return False
    if mine.first is None or theirs.first is None:
        return True
    first, second = (
        recordings[side].operators[recordings[side].values[value].operator]
        for side, value in ((0, mine.first), (1, theirs.first))
    )
    if not same_function(first, second):
        return True
    tiers = []
    for one, other in zip(first.inputs, second.inputs, strict=True):
        sketches = recordings[0].values[one].sketch, recordings[1].values[other].sketch
        tier = Tier.SAME if None in sketches else pairing.tier_of(*sketches)  # type: ignore[arg-type]
        if tier is None:
            # A mere view of an agreeing value may be the wrong view.
            return one in pairing.reference and other in pairing.candidate
        tiers.append(tier)
    return not any(tier > Tier.SLICE for tier in tiers)


def same_function(first: Recorded, second: Recorded) -> bool:
    """Return whether two operators compute the same from the same inputs, judged by their names and settings."""
    names = [one.name.split(".")[1].strip("_") for one in (first, second)]
    same = names[0] == names[1] or _PRODUCTS.issuperset(names)
    return same and first.settings == second.settings and len(first.inputs) == len(second.inputs)


def _last_agreed(
    recordings: tuple[Recording, Recording], found: tuple[int | None, int | None], pairing: Pairing, most: Tier
) -> tuple[int, int] | None:
    """Return the last pair of operators' results before the sides part: the inputs there that both sides hold."""
    for side, matches in ((0, pairing.reference), (1, pairing.candidate)):
        value = found[side]
        if value is None:
            continue
        recording, other = recordings[side], recordings[1 - side]
        for index in _going_in(recording, value):
            match = matches.get(index)
            if match is None or match.tier > most or not _is_result(recording.values[index]):
                continue
            partner = next((i for i in match.others if _is_result(other.values[i])), None)
            if partner is not None:
                return (index, partner) if side == 0 else (partner, index)
    return None


def _going_in(recording: Recording, value: int) -> Iterator[int]:
    """Yield the inputs of a value, the latest first; before a view, the value that it is a view of."""
    for index in sorted(recording.inputs_of(value), reverse=True):
        chain = _computed(recording, index)
        # A view of a parameter is no result.
        if recording.values[chain[0]].kind is Kind.OPERATOR:
            yield from chain


def _computed(recording: Recording, value: int) -> list[int]:
    """Return a value and the values that it is only a view of, in the order in which they were computed."""
    chain = [value]
    while (made_by := recording.values[chain[-1]].operator) >= 0:
        operator = recording.operators[made_by]
        if not operator.views or len(operator.inputs) != 1:
            break
        chain.append(operator.inputs[0])
    return chain[::-1]


def _is_result(value: Value) -> bool:
    return value.kind is Kind.OPERATOR and value.sketch is not None and value.sketch.varies
