"""Compares a quantizer's range with the values that it rounds: clipped, far too wide, along the wrong axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qtrace.numerics import NoValues, plain
from qtrace.report.records import QuantProblem, QuantProblemKind
from qtrace.toolkits.quantizer import Reading

# A value so far beyond the range, as a share of the values' interval, has an error of that PEIR.
_LOST = 0.05
# Such a share of the values beyond the range is too many; a percentile that is cut off on purpose is less.
_MANY = 0.01
# Float8 with three bits of mantissa ends in 1.75 * 2**e: half of the step there, 2**(e - 4), is 1/28 of that.
_LAST_FLOAT_STEP = 1 / 28
# A step of half the mean size leaves most values a few levels; if the dtype has many levels, the range is at fault.
_COARSE = 0.5
_LEVELS = 200
_CALIBRATE = "calibrate on inputs like these, or widen the range"
# RMS of a rounding error that is uniform over one step.
_RMS = 1 / math.sqrt(12)
# A range this many times as wide as the values leaves three bits unused.
WIDE = 8.0
# If scales were taken from an axis, most of them give its largest values to within this.
_FITS = 0.05
_MOST = 0.75


def blocks_of(shape: Sequence[int], scale: Tensor, axis: int | None) -> list[int] | None:
    """Return the number of blocks on each axis of a tensor of this shape, with one scale for each block.

    [1, 1] is one scale for a matrix, [n, 1] one for each of n rows, [n, 4] four groups in each row. Return None if the
    scales do not divide the tensor so.
    """
    if scale.numel() == 1:
        return [1] * len(shape)
    if axis is not None and -len(shape) <= axis < len(shape) and scale.numel() == shape[axis]:
        return [scale.numel() if place == axis % len(shape) else 1 for place in range(len(shape))]
    counts = list(scale.shape)
    # One scale for each row, however many axes of one element the scale has.
    if scale.dim() != len(shape) and scale.numel() == shape[0]:
        counts = [scale.numel(), *([1] * (len(shape) - 1))]
    fits = len(counts) == len(shape) and all(size % count == 0 for size, count in zip(shape, counts, strict=True))
    return counts if fits else None


def extents(values: Tensor, blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value in each block, each in the shape `blocks`."""
    parts = cut(values, blocks)
    within = tuple(range(1, parts.dim(), 2))
    return parts.amin(within), parts.amax(within)


def share_outside(values: Tensor, low: Tensor, high: Tensor, blocks: Sequence[int]) -> float:
    """Return the share of values that lie below `low` or above `high` of their block; NaN counts as outside."""
    parts = cut(values, blocks)
    shape = [size for count in blocks for size in (count, 1)]
    inside = (parts >= low.reshape(shape)) & (parts <= high.reshape(shape))
    return 1 - inside.sum(dtype=torch.float64).item() / values.numel()


def cut(values: Tensor, blocks: Sequence[int]) -> Tensor:
    """Return `values` with each axis split into two, (blocks, elements of a block)."""
    sizes = zip(values.shape, blocks, strict=True)
    return values.reshape([part for size, count in sizes for part in (count, size // count)])


def quantizer_input(reading: Reading, reference: torch.nn.Module, values: Mapping[str, Tensor]) -> Tensor | None:
    """Return the tensor that a quantizer rounds; None if that is not known.

    For a weight it is the candidate's own or, if only the rounded one is kept, the reference's. For "input" and
    "output" it is the reference's tensor of this name in `values`.
    """
    if reading.of != "weight":
        taken = values.get(reading.of)
        if taken is None:
            return None
        return with_gain(taken.relu() if reading.rectified else taken, reading)
    held = reading.weight if reading.weight is not None else reference._parameters.get(reading.parameter)
    try:
        found = None if held is None else plain(held)
        stored = None if reading.stored is None else plain(reading.stored)
    except NoValues:
        return None
    if found is None or not found.is_floating_point() or not found.numel():
        return None
    if reading.weight is None:
        found = with_gain(found, reading)
    return found if stored is None or is_rounded(found, stored, reading) else None


def with_gain(values: Tensor, reading: Reading) -> Tensor:
    """Return the reference's values as the quantizer receives them, with its gain."""
    return values if reading.gain is None else values * reading.gain.detach().to(values)


def without_gain(values: Tensor, reading: Reading) -> Tensor:
    """Return the values with `with_gain` undone."""
    return values if reading.gain is None else values / reading.gain.detach().to(values)


def is_rounded(weight: Tensor, stored: Tensor, reading: Reading) -> bool:
    """Return whether a stored weight is this weight rounded, without a folded scale and in the same basis."""
    if weight.shape != stored.shape or reading.scale is None or not reading.scale.numel():
        return False
    off = (weight.to(torch.float32) - stored.to(torch.float32)).abs().median().item()
    return off <= max(reading.scale.max().item(), weight.abs().median().item() / 2)


def without_empty(reading: Reading, values: Tensor | None) -> Reading:
    """Return a reading with each scale of 0 for zeros only, as of a padding row, set to the least of the others."""
    scale = reading.scale
    if scale is None or values is None or not values.dim() or not bool((scale == 0).any()) or not bool(scale.any()):
        return reading
    blocks = blocks_of(values.shape, scale, reading.axis)
    if blocks is None:
        return reading
    least, most = (extent.reshape(scale.shape).to(scale.device) for extent in extents(values, blocks))
    empty = (scale == 0) & (least == 0) & (most == 0)
    return replace(reading, scale=torch.where(empty, scale[scale != 0].min(), scale))


@dataclass(frozen=True, slots=True)
class Range:
    """The least and greatest value that each scale represents, and half a step, by the blocks of the scales."""

    low: Tensor
    high: Tensor
    half: Tensor

    @classmethod
    def of(cls, reading: Reading) -> Range | None:
        """Return the range of a quantizer; None if its scale or its levels are not known, or no numbers."""
        scale = reading.scale
        if scale is None or reading.levels is None or not scale.numel():
            return None
        step = scale.detach().to("cpu", torch.float64)
        if not bool((torch.isfinite(step) & (step > 0)).all()):
            return None
        zero = torch.zeros((), dtype=torch.float64)
        if reading.zero_point is not None and reading.zero_point.numel() in (1, step.numel()):
            zero = reading.zero_point.detach().to("cpu", torch.float64)
            zero = zero.reshape(step.shape) if zero.numel() == step.numel() else zero.reshape(())
        low, high = ((level - zero) * step for level in reading.levels)
        half = step / 2
        if reading.is_float:
            # A float's steps are of all sizes; half of the last one is at least this.
            half = reading.levels[1] * _LAST_FLOAT_STEP * step
        elif reading.codes is not None:
            half = half * _gaps(reading.codes).max()
        return cls(low, high, half)

    def rounding(self, reading: Reading) -> float | None:
        """Return the RMS error of rounding to the widest step; None for a float, which has no single step.

        For a table of levels it is that of values spread evenly over it: with gaps g, (sum g^3 / sum g / 12)^(1/2).
        """
        if reading.is_float:
            return None
        widest = 2 * self.half.max().item()
        if reading.codes is None:
            return widest * _RMS
        gaps = _gaps(reading.codes)
        return widest * _RMS * ((gaps / gaps.max()) ** 3).sum().div((gaps / gaps.max()).sum()).sqrt().item()

    def span(self) -> tuple[float, float]:
        """Return the least and the greatest value that any scale represents."""
        return self.low.min().item(), self.high.max().item()


def _gaps(codes: Tensor) -> Tensor:
    return codes.detach().to("cpu", torch.float64).sort().values.diff()


def saturated_share(values: Tensor, reading: Reading, held: Range) -> float | None:
    """Return the share of `values` that saturate; None if the scales do not fit their shape."""
    blocks = _blocks(values, reading, held)
    if blocks is None:
        return None
    low, high = _with_half(held, blocks)
    least, most = (extent.to("cpu", torch.float64) for extent in extents(values, blocks))
    if bool((least >= low).all()) and bool((most <= high).all()):
        return 0.0
    dtype = values.dtype if values.dtype is torch.float64 else torch.float32
    return share_outside(values, low.to(values.device, dtype), high.to(values.device, dtype), blocks)


def range_problems(values: Tensor, reading: Reading, held: Range, share: float) -> Iterator[QuantProblem]:
    """Yield the problems of a range for these values, `share` of which saturate."""
    blocks = _blocks(values, reading, held)
    if blocks is None:
        return
    low, high = _with_half(held, blocks)
    least, most = (extent.to("cpu", torch.float64) for extent in extents(values, blocks))
    interval = (most - least).max().item()
    beyond = torch.maximum(low - least, most - high)
    lost = beyond.max().item()
    other = _other_axis(values, reading, held, least, most)
    if other is not None:
        said = f"its scales are those of axis {other}, and are used along axis {reading.axis}"
        yield QuantProblem(QuantProblemKind.WRONG_AXIS, said, f"take the scales per channel along axis {reading.axis}")
    # Some symmetric schemes intend values up to one step beyond the range, in blocks of few values.
    elif (share >= _MANY and bool((beyond > 2 * held.half.reshape(blocks)).any())) or not lost <= _LOST * interval:
        lowest, highest = least.min().item(), most.max().item()
        ends = held.span()
        said = (
            f"{share:.2%} of the values lie outside of what it represents: "
            f"they reach {lowest:.4g} to {highest:.4g}, it {ends[0]:.4g} to {ends[1]:.4g}"
        )
        remedy = "take its range from the weight again" if reading.of == "weight" else _CALIBRATE
        yield QuantProblem(QuantProblemKind.CLIPPED, said, remedy)
    elif not reading.is_float:
        yield from _too_wide(held, least, most, blocks, reading) or _too_coarse(values, held, blocks, reading)


def _too_wide(held: Range, least: Tensor, most: Tensor, blocks: list[int], reading: Reading) -> list[QuantProblem]:
    # A symmetric range for values of one sign is twice as wide as the values, without a fault of the calibration.
    reach = torch.maximum(most, torch.zeros_like(most)) - torch.minimum(least, torch.zeros_like(least))
    # A block of equal values may be represented exactly by the widest step.
    live = (reach > 0) & (most > least)
    if not bool(live.any()):
        return []
    width = (held.high - held.low).reshape(blocks).expand_as(reach)
    times = (width[live] / reach[live]).median().item()
    if times < WIDE:
        return []
    said = f"its range is {times:.3g} times as wide as the values"
    remedy = "take it from the weight again" if reading.of == "weight" else "calibrate again, without outliers"
    return [QuantProblem(QuantProblemKind.DEAD_RANGE, said, f"narrow the range: {remedy}")]


def _too_coarse(values: Tensor, held: Range, blocks: list[int], reading: Reading) -> list[QuantProblem]:
    """Return the problem of a range as wide as a few outliers: all other values get a few of many levels."""
    if reading.levels is None or reading.codes is not None or reading.levels[1] - reading.levels[0] < _LEVELS:
        return []
    parts = cut(values, blocks).to(torch.float32)
    within = tuple(range(1, parts.dim(), 2))
    size = parts.abs().mean(within).to("cpu", torch.float64)
    step = 2 * held.half.reshape(blocks).expand_as(size)
    # Values of one sign, such as probabilities, have a long tail by nature.
    live = (parts.amin(within) < 0).cpu() & (parts.amax(within) > 0).cpu()
    times = (step[live] / size[live]).median().item() if bool(live.any()) else 0.0
    if times < _COARSE:
        return []
    said = f"a few outliers stretch its range: one step is {times:.3g} times the mean size of the values"
    remedy = "cut off or smooth the outliers, or take a scale for each channel or token"
    return [QuantProblem(QuantProblemKind.DEAD_RANGE, said, remedy)]


def _blocks(values: Tensor, reading: Reading, held: Range) -> list[int] | None:
    return blocks_of(values.shape, held.low, reading.axis) if values.numel() and values.dim() else None


def _with_half(held: Range, blocks: list[int]) -> tuple[Tensor, Tensor]:
    # Half a step beyond the last level still rounds to it; slightly more is the rounding of the bound itself.
    slack = held.half * (1 + 1e-3)
    return (held.low - slack).reshape(blocks), (held.high + slack).reshape(blocks)


def _other_axis(values: Tensor, reading: Reading, held: Range, least: Tensor, most: Tensor) -> int | None:
    """Return the axis whose largest values the scales were taken from, if it is not the scales' own axis."""
    axis = reading.axis
    if axis is None or held.low.numel() < 2 or values.dim() < 2 or reading.of != "weight":
        return None
    if _fit(held, least.flatten(), most.flatten()):
        return None
    for other in range(values.dim()):
        if other != axis and values.shape[other] == held.low.numel():
            cut = [size if place == other else 1 for place, size in enumerate(values.shape)]
            low, high = (extent.flatten().to("cpu", torch.float64) for extent in extents(values, cut))
            if _fit(held, low, high):
                return other
    return None


def _fit(held: Range, least: Tensor, most: Tensor) -> bool:
    """Return whether most ranges end where their values do, at the end further from zero."""
    reach = torch.maximum(least.abs(), most.abs())
    end = torch.maximum(held.low.abs(), held.high.abs()).flatten()
    near = (end - reach).abs() <= _FITS * reach
    return near.to(torch.float64).mean().item() >= _MOST
