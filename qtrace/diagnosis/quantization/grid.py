"""Which elements of a tensor each scale is for: all, those of a channel, those of a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def blocks_of(shape: Sequence[int], scale: Tensor, axis: int | None) -> list[int] | None:
    """Return into how many blocks each axis of a tensor of this shape is cut, one for each scale.

    [1, 1] is one scale for a matrix, [n, 1] one for each of n rows, [n, 4] four groups in each. None where the scales
    do not divide the tensor so.
    """
    if scale.numel() == 1:
        return [1] * len(shape)
    if axis is not None and -len(shape) <= axis < len(shape) and scale.numel() == shape[axis]:
        return [scale.numel() if place == axis % len(shape) else 1 for place in range(len(shape))]
    counts = list(scale.shape)
    # One scale for each row, however many axes of one element stand around it.
    if scale.dim() != len(shape) and scale.numel() == shape[0]:
        counts = [scale.numel(), *([1] * (len(shape) - 1))]
    fits = len(counts) == len(shape) and all(size % count == 0 for size, count in zip(shape, counts, strict=True))
    return counts if fits else None


def extents(values: Tensor, blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value in each block, of the shape `blocks`."""
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
    """Return `values` with each axis as two, (blocks, elements of a block)."""
    sizes = zip(values.shape, blocks, strict=True)
    return values.reshape([part for size, count in sizes for part in (count, size // count)])
