"""Reduces a tensor to a few numbers by which it is found again on the other side.

Eight random projections are kept of each tensor, and of each slice along each of its axes. A projection is a sum of the
elements, each times a fixed random weight of its place. Two tensors with the same elements in the same order have the
same projections, in whatever shape; a factor between the tensors is a factor between their projections. The root mean
square of the difference of two tensors is, but for a factor near 1, that of the difference of their projections over
sqrt(n) (Johnson and Lindenstrauss). Moments, which do not depend on the order, reveal another layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from qtrace.numerics import NoValues, plain
from qtrace.numerics.relations import FILL

PROJECTIONS = 8
# A prime, so that the weights' period fits no axis of a tensor.
_PERIOD = 4093
_MOST_BLOCKS = 1 << 15
# An axis longer than this is not cut into slices.
_MOST_SLICES = 512
# A longer tensor is not sketched: that would cost more than the operator that made it.
_MOST_ELEMENTS = 1 << 26
# Sums are in float64 up to so many elements.
_EXACT = 1 << 20
# Fewer elements, or only two different values, say nothing in another order.
_FEWEST = 8
_FEWEST_UNORDERED = 64
# A variance counts as the largest possible one up to this share of the squared interval.
_SPREAD = 1e-9


@dataclass(frozen=True, slots=True)
class Sketch:
    """The numbers kept of a tensor, taken as a dense one of real numbers.

    `projections` is float64 [8]; `slices` has float64 [n, 8] for each axis of n slices. `low`, `high` are the smallest
    and largest element, `moments` the mean, the root mean square and the cube root of the mean cube. `odd` counts the
    elements left out: NaN, Inf, and the fill of masks. `varies` says whether enough elements differ to recognise the
    tensor by, `mixes` whether they have more than two values.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    count: int
    projections: torch.Tensor
    slices: dict[int, torch.Tensor]
    low: float
    high: float
    moments: tuple[float, float, float]
    odd: tuple[int, int, int]
    varies: bool
    mixes: bool

    @property
    def bare(self) -> tuple[int, ...]:
        """The shape without axes of size 1."""
        return tuple(n for n in self.shape if n != 1)


def sketch(tensor: torch.Tensor, *, slices: bool = True) -> Sketch | None:
    """Return the sketch of a tensor of any shape, dtype and device; None if it is empty, huge, or has no values."""
    if not 0 < tensor.numel() <= _MOST_ELEMENTS:
        return None
    try:
        values = plain(tensor)
    except NoValues:
        return None
    exact = values.dtype is torch.float64 or (values.numel() <= _EXACT and values.device.type != "mps")
    values = values.to(torch.float64 if exact else torch.float32)
    values, low, high, odd = _cleaned(values)
    count = values.numel()
    squares = values * values
    mean, square, cube = (float(each.mean()) for each in (values, squares, squares * values))
    # The variance reaches its largest possible value only if all elements lie at the two ends (Bhatia and Davis).
    spread = (high - mean) * (mean - low)
    mixes = spread - (square - mean * mean) > _SPREAD * (high - low) ** 2
    flat = values.reshape(1, -1)
    axes = [axis for axis, n in enumerate(values.shape) if 1 < n <= _MOST_SLICES and n < count] if slices else []
    return Sketch(
        shape=tuple(values.shape),
        dtype=tensor.dtype,
        count=count,
        projections=_projected(flat)[0],
        slices={axis: _projected(values.movedim(axis, 0).reshape(values.shape[axis], -1)) for axis in axes},
        low=low,
        high=high,
        moments=(mean, math.sqrt(square), math.copysign(abs(cube) ** (1 / 3), cube)),
        odd=odd,
        varies=count >= _FEWEST and low < high,
        mixes=mixes and count >= _FEWEST_UNORDERED,
    )


def _cleaned(values: torch.Tensor) -> tuple[torch.Tensor, float, float, tuple[int, int, int]]:
    """Return the values without NaN, Inf and the fill of masks, their extremes, and how many of each there were.

    These elements would spoil every sum. Each is replaced by -1, so that its place still counts.
    """
    low, high = (float(end) for end in values.aminmax())
    if math.isfinite(low) and math.isfinite(high) and low > FILL:
        return values, low, high, (0, 0, 0)
    nan, infinite = values.isnan(), values.isposinf()
    fill = values <= FILL
    odd = int(nan.sum()), int(infinite.sum()), int(fill.sum())
    values = values.masked_fill(nan | infinite | fill, -1.0)
    low, high = (float(end) for end in values.aminmax())
    return values, low, high, odd


@lru_cache(maxsize=8)
def _weights(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights within one period, [4093, 8], and those of whole periods, [32768, 8]."""
    generator = torch.Generator().manual_seed(0x5EED)
    inner = torch.randn(_PERIOD, PROJECTIONS, generator=generator, dtype=torch.float64)
    outer = torch.randint(0, 2, (_MOST_BLOCKS, PROJECTIONS), generator=generator).to(torch.float64) * 2 - 1
    # The first period keeps its weights.
    outer[0] = 1
    return inner.to(device, dtype), outer.to(device, dtype)


def _projected(rows: torch.Tensor) -> torch.Tensor:
    """Return the projections of each row, [rows, n] to float64 [rows, 8] on the CPU."""
    inner, outer = _weights(rows.device, rows.dtype)
    if rows.shape[1] <= _PERIOD:
        return (rows @ inner[: rows.shape[1]]).to("cpu", torch.float64)
    total = rows.new_zeros(rows.shape[0], PROJECTIONS)
    for block, part in enumerate(torch.split(rows, _PERIOD, dim=1)):
        total += (part @ inner[: part.shape[1]]) * outer[block]
    return total.to("cpu", torch.float64)
