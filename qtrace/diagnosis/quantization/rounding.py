"""What a quantizer makes of a tensor by rounding it; unless asked for, no value saturates."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from qtrace.diagnosis.quantization.grid import blocks_of, cut, extents
from qtrace.diagnosis.quantization.ranges import WIDE
from qtrace.toolkits.quantizer import Reading

_FLOAT = re.compile(r"float\d+_e(?P<exponent>\d+)m(?P<mantissa>\d+)")


def rounded(values: Tensor, reading: Reading, *, saturates: bool = False) -> Tensor | None:
    """Return `values`, each at the nearest level, as if the quantizer fitted: nothing saturates unless asked for.

    A range more than 8 times as wide as the values is at fault, and no matter of rounding; one that ends where they do
    stands in for it. None where scales or levels are not known, are no numbers, or do not fit the shape.
    """
    if reading.levels is None or not values.numel() or not values.dim():
        return None
    fitting = _fitting(values, reading)
    if fitting is None:
        return None
    blocks, step, zero = fitting
    shape = [size for count in blocks for size in (count, 1)]
    step, zero = step.reshape(shape), zero.reshape(shape) if zero.numel() > 1 else zero
    levels = cut(values, blocks) / step + zero
    nearest = _nearest(levels, reading)
    if saturates:
        nearest = nearest.clamp(*reading.levels)
    return ((nearest - zero) * step).reshape(values.shape)


def _fitting(values: Tensor, reading: Reading) -> tuple[list[int], Tensor, Tensor] | None:
    """Return the blocks, and the step and the zero point of each, as the values would have them where they are off."""
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    if reading.scale is None:
        blocks = _dynamic_blocks(values, reading)
        return None if blocks is None else (blocks, _fit(values, reading, blocks), zero)
    step = reading.scale.detach().to(values)
    blocks = blocks_of(values.shape, step, reading.axis)
    if blocks is None or not bool((torch.isfinite(step) & (step > 0)).all()):
        return None
    if reading.zero_point is not None and reading.zero_point.numel() in (1, step.numel()):
        zero = reading.zero_point.detach().to(values).flatten()
    fit = _fit(values, reading, blocks)
    step = step.flatten()
    return blocks, torch.where(step > WIDE * fit.flatten(), fit.flatten(), step), zero


def _dynamic_blocks(values: Tensor, reading: Reading) -> list[int] | None:
    """Return the blocks of a scale that is chosen at each call: of all values, of a token, or of a group of one."""
    if reading.group is not None:
        count, rest = divmod(values.shape[-1], reading.group)
        return None if rest else [*values.shape[:-1], count]
    return [*values.shape[:-1], 1] if reading.by_token else [1] * values.dim()


def _fit(values: Tensor, reading: Reading, blocks: list[int]) -> Tensor:
    """Return the step of a range that ends where the values of its block do."""
    assert reading.levels is not None
    low, high = reading.levels
    least, most = extents(values, blocks)
    if reading.symmetric is False:
        step = (most.clamp(min=0) - least.clamp(max=0)) / (high - low)
    else:
        step = torch.maximum(most.abs(), least.abs()) / max((high - low) / 2 if low >= 0 else high, 1)
    # Where all is zero any step will do.
    return torch.where(step > 0, step, torch.ones_like(step))


def _nearest(levels: Tensor, reading: Reading) -> Tensor:
    if reading.codes is not None:
        codes = reading.codes.detach().to(levels).sort().values
        return codes[torch.bucketize(levels, (codes[1:] + codes[:-1]) / 2)]
    form = _FLOAT.match(reading.dtype)
    if form is None:
        return levels.round()
    # Between 2**e and 2**(e + 1) there are 2**mantissa steps; below the least normal number they get no smaller.
    least = 2 - 2 ** (int(form["exponent"]) - 1)
    exponent = torch.frexp(levels).exponent.clamp(min=least + 1) - 1 - int(form["mantissa"])
    step = torch.ldexp(torch.ones_like(levels), exponent)
    return (levels / step).round() * step
