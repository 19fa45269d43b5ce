"""Computes the sums in float64: any dtype and values, 64-bit integers as integers; also where `kernel` is in doubt."""

from __future__ import annotations

import math

import torch

from qtrace.numerics.kernel import INTEGERS, WIDE, Scratch, blocks
from qtrace.numerics.metrics import Sums, merge

BLOCK = 1 << 18
# The squares of magnitudes between these two neither vanish nor overflow in a float64 sum.
_TINY, _HUGE = 2.0**-400, 2.0**400

_scratch = Scratch()


def difference(reference: torch.Tensor, candidate: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Return r - c as float64, given `d`, the difference of both converted to float64.

    `d` loses the last digits of 64-bit integers beyond 2^53, so that unequal integers seem equal. The difference
    itself is small then, and is computed in integers. For other dtypes `d` is returned.
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


def sums(reference: torch.Tensor, candidate: torch.Tensor, *, full: bool) -> Sums:
    """Return the sums of a pair of equal shape on the CPU.

    With `full`, the sums of squares and products are computed as well as those that `metrics="seed"` needs.
    """
    if torch.float64 not in (reference.dtype, candidate.dtype):
        return _pass(reference, candidate, full, (0, 0, 0))
    on_reference, on_candidate = _exponent(_peak(reference)), _exponent(_peak(candidate))
    total = _pass(reference, candidate, full, (on_reference, on_candidate, 0))
    on_noise = _exponent(total.max)
    return _pass(reference, candidate, full, (on_reference, on_candidate, on_noise)) if on_noise else total


def _pass(reference: torch.Tensor, candidate: torch.Tensor, full: bool, exponents: tuple[int, int, int]) -> Sums:
    total = Sums(exponents=exponents)
    for one, other in blocks(reference, candidate, BLOCK):
        if one.numel():
            total = merge(total, _block(one, other, full, exponents))
    return total


def _block(reference: torch.Tensor, candidate: torch.Tensor, full: bool, exponents: tuple[int, int, int]) -> Sums:
    """Return the sums of one block; the second pass, about the mean, finds e = |r - c| in cache."""
    pairs = finite = reference.numel()
    bad_reference = bad_candidate = unequal = 0
    r, c = _double(reference, 0), _double(candidate, 1)
    d = torch.sub(r, c, out=_scratch.take(2, torch.float64, (pairs,)))
    if reference.dtype in INTEGERS or candidate.dtype in INTEGERS:
        d = difference(reference, candidate, d)
        unequal = int(d.count_nonzero())
    e = d.abs_()
    least, most = _range(e)
    keep = None
    if not math.isfinite(most):
        finite_r, finite_c = torch.isfinite(r), torch.isfinite(c)
        keep = finite_r.logical_and(finite_c)
        finite = int(keep.sum())
        bad_reference, bad_candidate = pairs - int(finite_r.sum()), pairs - int(finite_c.sum())
        if not finite:
            return Sums(pairs, 0, bad_reference, bad_candidate, unequal, exponents=exponents)
        r, c, e = r[keep], c[keep], e[keep]
        least, most = _range(e)
    low, high = _range(r)
    if reference.dtype in WIDE:
        low, high = extremes(reference if keep is None else reference.reshape(-1)[keep])
    on_reference, on_candidate, on_noise = exponents
    mean = squares = noise = signal = answer = product = 0.0
    if most:
        if on_noise > 0:
            e = e.mul_(2.0**on_noise)
        elif on_noise < 0:
            # A quarter of each first: the difference of two finite numbers may be beyond float64.
            e = (r * 0.25).sub_(c * 0.25).abs_().mul_(2.0 ** (on_noise + 2))
        if on_noise:
            least, most = _range(e)
        mean = e.sum().item() / finite
        noise = torch.dot(e, e).item() if full else 0.0
        e = e.sub_(mean)
        # Corrected for the rounding of the mean, which matters where e hardly varies.
        squares = max(0.0, torch.dot(e, e).item() - e.sum().item() ** 2 / finite)
    if full:
        r = r * 2.0**on_reference if on_reference else r
        c = c * 2.0**on_candidate if on_candidate else c
        signal = torch.dot(r, r).item()
        answer = torch.dot(c, c).item()
        product = torch.dot(r, c).item()
    return Sums(
        pairs, finite, bad_reference, bad_candidate, unequal, low, high, mean, least, most, squares,
        noise, signal, answer, product, exponents,
    )  # fmt: skip


def _double(block: torch.Tensor, slot: int) -> torch.Tensor:
    """Return the block as 1-D float64: the block itself if it is that already, else a copy in this thread's scratch."""
    if block.dtype is torch.float64 and block.is_contiguous():
        return block.view(-1)
    copy = _scratch.take(slot, torch.float64, (block.numel(),))
    copy.view(block.shape).copy_(block)
    return copy


def _range(x: torch.Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x)
    return low.item(), high.item()


def _peak(tensor: torch.Tensor) -> float:
    """Return the largest finite magnitude in a tensor, 0 if there is none."""
    if not tensor.numel():
        return 0.0
    if not tensor.is_floating_point():
        return 1.0
    low, high = _range(tensor)
    if math.isfinite(low) and math.isfinite(high):
        return max(abs(low), abs(high))
    return _peak(tensor[torch.isfinite(tensor)])


def _exponent(peak: float) -> int:
    """Return k such that the squares of magnitudes up to peak·2^k can be summed; 0 where no scaling is needed."""
    if peak == 0 or _TINY < peak < _HUGE:
        return 0
    return max(-1000, min(1000, -math.frexp(min(peak, 2.0**1023))[1]))
