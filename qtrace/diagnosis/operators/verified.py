"""A look at the values around a split: the models run once more, and keep the tensors of a few operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qtrace.diagnosis.operators.graph import Recording
from qtrace.diagnosis.operators.target import Target
from qtrace.engine.comparison import Comparison
from qtrace.engine.driver import CANDIDATE, REFERENCE
from qtrace.engine.pair import Pair, PairComparer
from qtrace.numerics.tolerance import Floors

# (reference value, candidate value)
ValuePair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """The tensors of the operators around a split, by side and value."""

    tensors: tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]
    floors: Floors
    depth: int

    def compared(self, values: ValuePair, cut: tuple[int, int] | None) -> Pair | None:
        """Return the comparison of two values; `cut` is the axis and the index of the slice of the larger one.

        None where a value was not kept, or where the shapes do not fit.
        """
        mine, theirs = (self.tensors[side].get(values[side]) for side in (REFERENCE, CANDIDATE))
        if mine is None or theirs is None:
            return None
        if cut is not None:
            mine, theirs = (_cut(one, other, cut) for one, other in ((mine, theirs), (theirs, mine)))
        comparer = PairComparer()
        pair = comparer.compare(mine, theirs)
        if pair is None or pair.measurement is None:
            return None
        comparer.explain(pair, mine, theirs, self.floors.of(pair.dtypes, self.depth))
        return pair

    def agree(self, pair: Pair) -> bool:
        """Return whether a pair agrees, up to a convention of the candidate's."""
        if Comparison(floors=self.floors).agrees(pair, self.depth):
            return True
        left = pair.peir_related()
        return left is not None and left <= self.floors.of(pair.dtypes, self.depth)


def keep(
    found: Target,
    path: str,
    index: int,
    recordings: tuple[Recording, Recording],
    values: tuple[set[int], set[int]],
    floors: Floors,
    depth: int,
) -> Kept | None:
    """Run both sides again, up to the end of the call, and keep the tensors of the operators that made these values.

    None where a side does not run the same operators again.
    """
    kept = []
    for side, at in ((REFERENCE, found.path), (CANDIDATE, path)):
        before = recordings[side]
        operators = {before.values[value].operator for value in values[side]}
        recorder, _ = found.recorded(side, at, index, operators)
        again = recorder.recording
        if again is None or [one.name for one in again.operators] != [one.name for one in before.operators]:
            return None
        kept.append(recorder.kept)
    return Kept((kept[REFERENCE], kept[CANDIDATE]), floors, depth)


def _cut(whole: torch.Tensor, part: torch.Tensor, cut: tuple[int, int]) -> torch.Tensor:
    axis, index = cut
    if whole.dim() > axis and whole.shape[axis] > index and whole.numel() == part.numel() * whole.shape[axis]:
        return whole.select(axis, index)
    return whole
