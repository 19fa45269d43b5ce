"""What a quantizer can represent, against the values that it is for: clipped, far too wide, along the wrong axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qtrace.diagnosis.quantization.grid import blocks_of, cut, extents, share_outside
from qtrace.report.records import QuantProblem, QuantProblemKind
from qtrace.toolkits.quantizer import Reading

# What lies beyond by so much of the values' interval is an error of that PEIR.
_LOST = 0.05
# Or such a share of them; a percentile that is meant to be cut off is less.
_MANY = 0.01
# Float8 with three bits of mantissa ends in 1.75 * 2**e: half of the step there, 2**(e - 4), is 1/28 of that.
_LAST_FLOAT_STEP = 1 / 28
# A step of half the mean size leaves most values a handful of levels; where a dtype has so many, the range is at fault.
_COARSE = 0.5
_LEVELS = 200
_CALIBRATE = "calibrate on inputs like these, or widen the range"
# RMS of a rounding error that is uniform over one step.
_RMS = 1 / math.sqrt(12)
# A range this many times as wide as the values leaves three bits unused.
WIDE = 8.0
# Scales that were taken from an axis give its largest values to within this, most of them.
_FITS = 0.05
_MOST = 0.75


@dataclass(frozen=True, slots=True)
class Range:
    """The least and greatest value that each scale represents, with half a step, in the blocks that it is for."""

    low: Tensor
    high: Tensor
    half: Tensor

    @classmethod
    def of(cls, reading: Reading) -> Range | None:
        """Return what a quantizer represents; None where its scale or its levels are not known, or no numbers."""
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
        """Return the RMS error of rounding to the widest step; None of a float, which has no one step.

        Of a table of levels it is that of values spread evenly over it: with gaps g, (sum g^3 / sum g / 12)^(1/2).
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
    """Return the share of `values` that saturate; None where the scales do not fit their shape."""
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
    """Yield what is wrong with a range for these values, `share` of which saturate."""
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
    # Up to one step more, in blocks of few values, is how some symmetric schemes are meant.
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
    # A symmetric range for values of one sign is twice as wide as they are, at no fault of the calibration.
    reach = torch.maximum(most, torch.zeros_like(most)) - torch.minimum(least, torch.zeros_like(least))
    # What is the same everywhere may be met exactly by the widest step.
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
    """Return what is wrong with a range as wide as a few outliers: all else gets a few levels of many."""
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
    # Half a step beyond the last level still rounds to it; a hair more is the rounding of the bound itself.
    slack = held.half * (1 + 1e-3)
    return (held.low - slack).reshape(blocks), (held.high + slack).reshape(blocks)


def _other_axis(values: Tensor, reading: Reading, held: Range, least: Tensor, most: Tensor) -> int | None:
    """Return the axis whose largest values the scales were taken from, if it is another than theirs."""
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
    """Return whether most ranges end where the values do, at the end that is further from zero."""
    reach = torch.maximum(least.abs(), most.abs())
    end = torch.maximum(held.low.abs(), held.high.abs()).flatten()
    near = (end - reach).abs() <= _FITS * reach
    return near.to(torch.float64).mean().item() >= _MOST
