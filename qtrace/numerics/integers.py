"""64-bit integers, which float64 does not hold: their differences and their range, computed as integers."""

from __future__ import annotations

import torch

from qtrace.numerics.dtypes import INTEGERS, WIDE


def difference(reference: torch.Tensor, candidate: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Return r - c as float64, given `d`, the difference of both converted to float64.

    That one loses the last digits of 64-bit integers beyond 2^53, so that unequal ones seem equal; the
    difference itself is small then, and taken as integers. Other dtypes get `d` back.
    """
    pair = {reference.dtype, candidate.dtype}
    if pair.isdisjoint(WIDE) or not pair <= INTEGERS:
        return d
    # Two's complement: the difference modulo 2^64 is the difference, wherever that is below 2^63.
    exact = (_signed(reference) - _signed(candidate)).view(d.shape).to(torch.float64)
    return torch.where(d.abs() < 2.0**62, exact, d)


def extremes(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the exact min and max of a 64-bit integer tensor."""
    offset, signed = 0, _signed(tensor)
    if tensor.dtype is torch.uint64:
        # Unsigned numbers are ordered as signed ones are once the top bit is flipped.
        offset, signed = 1 << 63, signed.bitwise_xor(-(1 << 63))
    low, high = torch.aminmax(signed)
    return int(low.item()) + offset, int(high.item()) + offset


def _signed(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    return tensor.view(torch.int64) if tensor.dtype is torch.uint64 else tensor.to(torch.int64)
