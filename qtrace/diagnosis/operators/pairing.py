"""Which value of one side stands against which of the other, by their sketches: never by name, never by count."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

from qtrace.diagnosis.operators.graph import Value
from qtrace.diagnosis.operators.sketch import PROJECTIONS, Sketch
from qtrace.diagnosis.operators.table import NO_GAIN, Table, limits_of
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import Relation


class Tier(IntEnum):
    """How surely two values stand for the same: a lower tier is preferred.

    `SAME` are equal in the same order, whatever the shape; `SLICE` where one is a slice of the other along one axis.
    `GAIN` and `LAYOUT` are equal up to one factor, or in another order.
    """

    SAME = 0
    SLICE = 1
    GAIN = 2
    LAYOUT = 3


@dataclass(frozen=True, slots=True)
class Match:
    """What stands against a value: the other side's values (several where it has one a slice), and how related."""

    tier: Tier
    others: tuple[int, ...]
    relation: Relation | None = None


class Pairing:
    """The partners of both sides' values; `depth` is how many calls after the inputs they were computed.

    `refuted` are the values of either side whose sketches mislead, as a look at the values themselves has shown: they
    have no partner.
    """

    def __init__(
        self,
        reference: Sequence[Value],
        candidate: Sequence[Value],
        floors: Floors,
        depth: int,
        refuted: tuple[Container[int], Container[int]] = ((), ()),
    ) -> None:
        self._limit = limits_of(floors, depth)
        self.reference: dict[int, Match] = {}
        self.candidate: dict[int, Match] = {}
        sides = [(v, v.sketch) for v in reference if v.sketch is not None and v.index not in refuted[0]]
        others = [(v, v.sketch) for v in candidate if v.sketch is not None and v.index not in refuted[1]]
        mine, theirs = Table(sides), Table(others)
        for value, sketch in sides:
            self._match(value, sketch, value.index / mine.longest, theirs, self.reference, turned=False)
        for value, sketch in others:
            self._match(value, sketch, value.index / theirs.longest, mine, self.candidate, turned=True)
        self._same = tuple(
            {value for value, match in found.items() if match.tier is Tier.SAME}
            for found in (self.reference, self.candidate)
        )
        for value, sketch in sides:
            self._cut(value, sketch, theirs, self.reference, self.candidate, turned=False)
        for value, sketch in others:
            self._cut(value, sketch, mine, self.candidate, self.reference, turned=True)

    def tier_of(self, reference: Sketch, candidate: Sketch) -> Tier | None:
        """Return how two values are related, as wholes or as a slice; None where they are not."""
        related = self._related(reference, candidate)
        if related is not None:
            return related[0]
        cut = cut_of(reference, candidate)
        if cut is None:
            return None
        whole, part = (reference, candidate) if reference.count > candidate.count else (candidate, reference)
        apart = _rms(whole.slices[cut[0]][cut[1]] - part.projections, part.count)
        return Tier.SLICE if apart <= self._limit(part, whole) else None

    def _match(
        self, value: Value, sketch: Sketch, when: float, table: Table, found: dict[int, Match], *, turned: bool
    ) -> None:
        """Find the best partner of a value as a whole: by tier, then the same shape, then the nearest in time."""
        best: tuple[tuple[float, ...], Match] | None = None
        for other, theirs in table.like(sketch, self._limit):
            related = self._related(theirs, sketch) if turned else self._related(sketch, theirs)
            if related is None:
                continue
            tier, relation = related
            away = abs(when - other.index / table.longest)
            rank = (tier, sketch.shape != theirs.shape, value.kind is not other.kind, away)
            if best is None or rank < best[0]:
                best = (rank, Match(tier, (other.index,), relation))
        if best is not None:
            found[value.index] = best[1]

    def _related(self, reference: Sketch, candidate: Sketch) -> tuple[Tier, Relation | None] | None:
        """Return how two values are related as wholes."""
        if reference.count != candidate.count or reference.odd != candidate.odd:
            return None
        limit = self._limit(reference, candidate)
        if _rms(candidate.projections - reference.projections, reference.count) <= limit:
            # Zeros, ones and two or three numbers are found everywhere: they must look alike as well.
            if not reference.varies and reference.shape != candidate.shape:
                return None
            same = reference.bare == candidate.bare
            return Tier.SAME, None if same else Relation("layout", {"reshape": list(reference.shape)})
        if not (reference.varies and candidate.varies):
            return None
        factor = _gain(reference.projections, candidate.projections)
        if factor is not None:
            left = _rms(candidate.projections - factor * reference.projections, reference.count)
            if left <= self._limit(candidate, reference):
                return Tier.GAIN, Relation("gain", {"factor": factor})
        if reference.mixes and candidate.mixes and _same_moments(reference, candidate, limit):
            return Tier.LAYOUT, Relation("layout", {})
        return None

    def _cut(
        self,
        value: Value,
        sketch: Sketch,
        table: Table,
        found: dict[int, Match],
        parts: dict[int, Match],
        *,
        turned: bool,
    ) -> None:
        """Find the values of the other side that are slices of this one; it has partners where all its slices have."""
        known = found.get(value.index)
        if not sketch.varies:
            return
        is_same = known is not None and known.tier is Tier.SAME
        for axis, slices in sketch.slices.items():
            if is_same and not table.lacks(sketch.count // len(slices), self._same[0 if turned else 1]):
                continue
            partners: dict[int, tuple[Tier, int]] = {}
            for at, other, theirs, factor in table.among(slices, sketch, self._limit):
                if not theirs.varies:
                    continue
                tier = Tier.SLICE if factor is None else Tier.GAIN
                if at not in partners or tier < partners[at][0]:
                    partners[at] = tier, other.index
                if other.index not in parts or parts[other.index].tier > tier:
                    parts[other.index] = Match(tier, (value.index,), _sliced(axis, at, factor, turned=turned))
            if len(partners) < sketch.shape[axis]:
                continue
            tier = max(tier for tier, _ in partners.values())
            if known is None or known.tier > tier:
                every = tuple(partners[at][1] for at in range(sketch.shape[axis]))
                known = found[value.index] = Match(tier, every, Relation("slice", {"axis": axis}))


def cut_of(reference: Sketch, candidate: Sketch) -> tuple[int, int] | None:
    """Return the axis and the index of the slice of the larger value that is the most like the smaller one."""
    whole, part = (reference, candidate) if reference.count > candidate.count else (candidate, reference)
    best: tuple[float, tuple[int, int]] | None = None
    for axis, slices in whole.slices.items():
        if whole.count == part.count * whole.shape[axis]:
            apart = (slices - part.projections).norm(dim=1)
            at = int(apart.argmin())
            if best is None or float(apart[at]) < best[0]:
                best = float(apart[at]), (axis, at)
    return None if best is None else best[1]


def _sliced(axis: int, index: int, factor: float | None, *, turned: bool) -> Relation:
    where = {"axis": axis, "index": index}
    if factor is None:
        return Relation("slice", where)
    return Relation("gain", {"factor": 1 / factor if turned else factor, **where})


def _rms(difference: torch.Tensor, count: int) -> float:
    """Return the root mean square of a difference of which these are the projections."""
    return float(difference.norm()) / math.sqrt(PROJECTIONS * count)


def _gain(reference: torch.Tensor, candidate: torch.Tensor) -> float | None:
    energy = float(reference.square().sum())
    factor = float(reference.dot(candidate)) / energy if energy else 0.0
    return factor if math.isfinite(factor) and factor and abs(factor - 1) > NO_GAIN else None


def _same_moments(reference: Sketch, candidate: Sketch, limit: float) -> bool:
    """Return whether both have the same extremes and moments, which do not depend on the order."""
    ends = max(abs(reference.low - candidate.low), abs(reference.high - candidate.high))
    moments = max(abs(r - c) for r, c in zip(reference.moments, candidate.moments, strict=True))
    return ends <= limit and moments <= limit
