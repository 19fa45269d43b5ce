"""Pairs the values of one side with those of the other by their sketches: never by name, never by count."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

from qtrace.diagnosis.operators.graph import Value
from qtrace.diagnosis.operators.sketch import PROJECTIONS, Sketch
from qtrace.numerics.tolerance import Floors, coarsest_eps
from qtrace.report.records import Relation

# If thousands of elements err alike and the largest error is at the limit, the root mean square of the error is a
# quarter of the limit. Few projections may estimate it twice too large by chance.
_TYPICAL = 0.5
# Rounding of the elements themselves counts where the interval is small beside them. It counts with the eps of their
# dtype, up to this one.
_COARSEST = 0.02
# The first, coarse search uses so many times the limit.
_ROOM = 4.0
# A gain nearer to 1 than this cannot be told from rounding.
NO_GAIN = 1e-3

# The root mean square by which a reference's and a candidate's value may be apart.
Limit = Callable[[Sketch, Sketch], float]


class Table:
    """One side's values by their number of elements, searched all at once."""

    def __init__(self, values: Sequence[tuple[Value, Sketch]]) -> None:
        by_count: dict[int, list[tuple[Value, Sketch]]] = {}
        for value, sketch in values:
            by_count.setdefault(sketch.count, []).append((value, sketch))
        self._groups = {count: _Group(found) for count, found in by_count.items()}
        self.longest = max((value.index for value, _ in values), default=0) + 1

    def like(self, sketch: Sketch, limit: Limit) -> list[tuple[Value, Sketch]]:
        """Return the values that may be related to one with this sketch."""
        group = self._groups.get(sketch.count)
        if group is None:
            return []
        # This search is coarse and has room to spare: each value found is examined closely afterwards.
        room = _ROOM * max(limit(sketch, other) for other in group.kinds)
        mine = sketch.projections
        apart = (group.projections - mine).square().sum(1)
        energy, product = float(mine.square().sum()), group.projections @ mine
        turned = group.energy - product.square() / energy if energy else group.energy
        near = apart <= room**2 * PROJECTIONS * sketch.count
        near |= turned <= (_ROOM * group.limits(limit)).square() * PROJECTIONS * sketch.count
        near |= ((group.ends - group.ends.new_tensor([sketch.low, sketch.high])).abs() <= room).all(1)
        return [group.values[at] for at in near.nonzero().flatten().tolist()]

    def lacks(self, count: int, known: Container[int]) -> bool:
        """Return whether there is a value of so many elements beside those that are known."""
        group = self._groups.get(count)
        return group is not None and any(sketch.varies and value.index not in known for value, sketch in group.values)

    def among(
        self, slices: torch.Tensor, whole: Sketch, limit: Limit
    ) -> Iterator[tuple[int, Value, Sketch, float | None]]:
        """Yield the index of the slice, of these [n, 8], a value equal to it, and the factor between them, if any."""
        group = self._groups.get(whole.count // len(slices))
        if group is None:
            return
        scale = math.sqrt(PROJECTIONS * group.values[0][1].count)
        most = group.limits(limit).clamp(max=max(limit(whole, other) for other in group.kinds))
        apart = torch.cdist(slices, group.projections, compute_mode="donot_use_mm_for_euclid_dist")
        same = apart <= most * scale
        product = slices @ group.projections.T
        factors = product / slices.square().sum(1, keepdim=True)
        left = (group.energy - factors * product).clamp_min(0).sqrt()
        turned = (left <= most * scale) & (factors.abs() > 0) & factors.isfinite() & ((factors - 1).abs() > NO_GAIN)
        for at, which in (same | turned).nonzero().tolist():
            yield at, *group.values[which], None if same[at, which] else float(factors[at, which])


class _Group:
    """Values with one number of elements, stacked; `kinds` has one sketch for each dtype."""

    def __init__(self, values: list[tuple[Value, Sketch]]) -> None:
        self.values = values
        self.kinds = list({sketch.dtype: sketch for _, sketch in values}.values())
        self.projections = torch.stack([sketch.projections for _, sketch in values])
        self.energy = self.projections.square().sum(1)
        self.ends = torch.tensor([[sketch.low, sketch.high] for _, sketch in values], dtype=torch.float64)
        self._limits: torch.Tensor | None = None

    def limits(self, limit: Limit) -> torch.Tensor:
        """Return the limit of each value, [n]."""
        if self._limits is None:
            self._limits = torch.tensor([limit(sketch, sketch) for _, sketch in self.values], dtype=torch.float64)
        return self._limits


def limits_of(floors: Floors, depth: int) -> Limit:
    """Return the function that maps two sketches to the root mean square by which their values may be apart."""

    def limit(reference: Sketch, candidate: Sketch) -> float:
        dtypes = (reference.dtype, candidate.dtype)
        if not any(dtype.is_floating_point for dtype in dtypes):
            # Token ids, indices, masks: one wrong element is an error, however large the others are.
            size = max(abs(reference.low), abs(reference.high), 1.0)
            return 1e-9 * size / math.sqrt(reference.count)
        interval = reference.high - reference.low
        rounding = min(coarsest_eps(dtypes), _COARSEST) * reference.moments[1]
        return _TYPICAL * floors.of(dtypes, depth) * interval + rounding

    return limit


class Tier(IntEnum):
    """How certain the match of two values is: a lower tier is preferred.

    `SAME`: equal in the same order, whatever the shape. `SLICE`: one is a slice of the other along one axis. `GAIN`:
    equal up to one factor. `LAYOUT`: equal in another order.
    """

    SAME = 0
    SLICE = 1
    GAIN = 2
    LAYOUT = 3


@dataclass(frozen=True, slots=True)
class Match:
    """The partners of a value: the other side's values (several if it has one for each slice), and their relation."""

    tier: Tier
    others: tuple[int, ...]
    relation: Relation | None = None


class Pairing:
    """The partners of both sides' values; `depth` is how many calls after the inputs they were computed.

    `refuted` are the values of either side whose sketches mislead, as a comparison of the values themselves showed:
    they have no partner.
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
        """Return the tier at which two values are related, as wholes or as a slice; None if they are not."""
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
            # Values of zeros, ones, or two or three numbers occur everywhere: their shapes must be equal as well.
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
        """Find the other side's values that are slices of this one; it has partners only if all its slices have."""
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
    """Return the axis and the index of the larger value's slice that is most like the smaller value."""
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
    """Return the root mean square of a difference, from its projections."""
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
