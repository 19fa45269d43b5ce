"""Computes the sums on an accelerator: float64 throughout, queued on the device, read back with the result."""

from __future__ import annotations

from functools import reduce

import torch

from qtrace.numerics.float64 import difference
from qtrace.numerics.kernel import INTEGERS, blocks
from qtrace.numerics.metrics import Sums, merge

# A block's float64 temporaries take a few hundred MB.
BLOCK = 1 << 22


def sums(reference: torch.Tensor, candidate: torch.Tensor, *, full: bool) -> torch.Tensor:
    """Return the sums of a pair of equal shape as float64 [blocks, fields of `Sums`] on the device.

    Nothing here waits for the device: no size, no branch and no index depends on a value. Values are not
    scaled: squares of magnitudes beyond 1e154 overflow, and the metrics computed from them are None. The range of
    64-bit integers is computed in float64.
    """
    rows = [
        _block(one, other.to(one.device, non_blocking=True), full)
        for one, other in blocks(reference, candidate, BLOCK)
        if one.numel()
    ]
    return torch.stack(rows) if rows else torch.empty(0, 0, dtype=torch.float64, device=reference.device)


def read(rows: torch.Tensor) -> Sums:
    """Return the sums that `sums` left on the device; waits for the device."""
    return reduce(merge, (Sums(*row) for row in rows.tolist()), Sums())


def _block(reference: torch.Tensor, candidate: torch.Tensor, full: bool) -> torch.Tensor:
    """Return the fields of `Sums` of one block; r = c = 0 stands in for a pair that is not finite."""
    r, c = reference.to(torch.float64), candidate.to(torch.float64)
    finite_r, finite_c = torch.isfinite(r), torch.isfinite(c)
    keep = finite_r.logical_and(finite_c)
    r, c = torch.where(keep, r, 0.0), torch.where(keep, c, 0.0)
    e = difference(reference, candidate, r - c).abs()
    pairs = torch.full((), r.numel(), dtype=torch.float64, device=r.device)
    finite = keep.sum(dtype=torch.float64)
    zero = torch.zeros_like(finite)
    unequal = zero
    if reference.dtype in INTEGERS or candidate.dtype in INTEGERS:
        unequal = (e != 0).logical_or(keep.logical_not()).sum(dtype=torch.float64)
    mean = e.sum() / finite.clamp(min=1)
    fields = [
        pairs,
        finite,
        pairs - finite_r.sum(),
        pairs - finite_c.sum(),
        unequal,
        torch.where(keep, r, torch.inf).min(),
        torch.where(keep, r, -torch.inf).max(),
        mean,
        torch.where(keep, e, torch.inf).min(),
        e.max(),
        torch.where(keep, e - mean, 0.0).square().sum(),
    ]
    if full:
        fields += [e.square().sum(), r.square().sum(), c.square().sum(), (r * c).sum()]
    return torch.stack(fields)
