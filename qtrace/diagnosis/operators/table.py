"""One side's values, searched by their sketches all at once; how far apart two may be and still be the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence

import torch

from qtrace.diagnosis.operators.graph import Value
from qtrace.diagnosis.operators.sketch import PROJECTIONS, Sketch
from qtrace.numerics.tolerance import Floors, coarsest_eps

# The root mean square of an error whose largest element is at the limit, for thousands of elements that err alike, is a
# quarter of that; few projections may tell it twice too large by chance.
_TYPICAL = 0.5
# Rounding of the elements themselves counts where the interval is small beside them, with the eps of their type, up to
# this one.
_COARSEST = 0.02
# The first, coarse search leaves so much room.
_ROOM = 4.0
# Between gains nearer to 1 than this nobody can tell rounding from a factor.
NO_GAIN = 1e-3

# By what root mean square a reference's and a candidate's value may be apart.
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
        # Coarsely, and with room to spare: each is looked at closely afterwards.
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
        """Yield the slice, of these [n, 8], the value that is the same, and the factor if it is so up to one."""
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
    """Values of one number of elements, side by side; `kinds` has one sketch for each dtype."""

    def __init__(self, values: list[tuple[Value, Sketch]]) -> None:
        self.values = values
        self.kinds = list({sketch.dtype: sketch for _, sketch in values}.values())
        self.projections = torch.stack([sketch.projections for _, sketch in values])
        self.energy = self.projections.square().sum(1)
        self.ends = torch.tensor([[sketch.low, sketch.high] for _, sketch in values], dtype=torch.float64)
        self._limits: torch.Tensor | None = None

    def limits(self, limit: Limit) -> torch.Tensor:
        """Return by how much each may be off, [n]."""
        if self._limits is None:
            self._limits = torch.tensor([limit(sketch, sketch) for _, sketch in self.values], dtype=torch.float64)
        return self._limits


def limits_of(floors: Floors, depth: int) -> Limit:
    """Return the function that gives the root mean square by which two values may be apart, for their sketches."""

    def limit(reference: Sketch, candidate: Sketch) -> float:
        dtypes = (reference.dtype, candidate.dtype)
        if not any(dtype.is_floating_point for dtype in dtypes):
            # Token ids, indices, masks: one off is wrong, however large the others are.
            size = max(abs(reference.low), abs(reference.high), 1.0)
            return 1e-9 * size / math.sqrt(reference.count)
        interval = reference.high - reference.low
        rounding = min(coarsest_eps(dtypes), _COARSEST) * reference.moments[1]
        return _TYPICAL * floors.of(dtypes, depth) * interval + rounding

    return limit
