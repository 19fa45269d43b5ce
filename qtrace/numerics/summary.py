"""`describe`: the statistics of one tensor, for listings of one side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qtrace.numerics.blocks import blocks
from qtrace.numerics.dense import plain
from qtrace.numerics.sums import Sums, merge

_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the finite elements x of one tensor, in its own unit; None where there are none.

    `mean` = sum(x) / n, `stddev` = sqrt(sum((x - mean)²) / n), both in float64; `non_finite` counts the rest.
    """

    min: float | None = None
    max: float | None = None
    mean: float | None = None
    stddev: float | None = None
    non_finite: int = 0


def describe(tensor: torch.Tensor) -> Summary:
    """Return the statistics of the values of a tensor: of any dtype, quantized or sparse, on any device.

    True is 1 and False 0; complex numbers count as pairs. Waits for the accelerator if the tensor is on one.
    Raises `NoValues` as `plain` does.
    """
    tensor = plain(tensor)
    total = Sums()
    for block, _ in blocks(tensor, tensor, _BLOCK):
        if block.numel():
            total = merge(total, _block(block))
    if not total.finite:
        return Summary(non_finite=int(total.bad_reference))
    low, high, mean, stddev = (
        x + 0.0 if math.isfinite(x) else None  # -0.0 would be shown as -0
        for x in (total.low, total.high, total.mean, math.sqrt(total.squares / total.finite))
    )
    return Summary(low, high, mean, stddev, int(total.bad_reference))


def _block(block: torch.Tensor) -> Sums:
    pairs = block.numel()
    x = (block.cpu() if block.device.type == "mps" else block).to(torch.float64)
    low, high = (extreme.item() for extreme in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        x = x[torch.isfinite(x)]
        if not x.numel():
            return Sums(pairs, 0, pairs)
        low, high = (extreme.item() for extreme in torch.aminmax(x))
    mean = x.mean()
    squares = (x - mean).square().sum().item()
    finite = x.numel()
    return Sums(pairs, finite, pairs - finite, low=low, high=high, mean=mean.item(), squares=squares)
