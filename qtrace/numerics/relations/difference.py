"""Prepares a pair that differs, once for all relations: comparable dtypes, and when a relation explains the pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qtrace.numerics.dense import plain
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import Statistics

# A PEIR above this is more than rounding in float32, and worth the search for a relation.
VISIBLE = 1e-3
# The error that remains under a relation must be rounding, of a depth that any model has...
_DEPTH = 100
# ...and at most this share of the original error: a small fault also fits into the tolerance of a coarse dtype.
_EXPLAINED = 0.1
# An element may be off by this many tolerances, relative to its own size...
_SLACK = 10.0
_LOOSEST = 0.05
# Sums over a huge channel leave more rounding than an ordinary channel would have by itself.
_TIGHTEST = 1e-3
# ...and this share of the elements must not be off by more.
MOST = 0.9
_SAMPLE = 1 << 16
# Relations are searched for on at most this many elements before the whole pair is read.
SAMPLE = 1 << 18
# float64 holds all integers up to this.
_WHOLE = 2.0**53


def picks(count: int, most: int, device: torch.device) -> torch.Tensor:
    """Return up to `most` different indices below `count`, spread evenly and without a period."""
    if count <= most:
        return torch.arange(count, device=device)
    golden = torch.arange(most, dtype=torch.float64) * 0.618_033_988_749_895
    indices: torch.Tensor = torch.unique((golden.frac() * count).long())
    return indices.to(device)


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Return up to 2^16 elements, at the same positions in any two tensors of one size."""
    flat = tensor.reshape(-1)
    return flat[picks(len(flat), _SAMPLE, flat.device)]


def loose(limit: float) -> float:
    """Return the share of its size by which an element may be off where the PEIR may be `limit`."""
    return min(max(_SLACK * limit, _TIGHTEST), _LOOSEST)


def typical(tensor: torch.Tensor) -> float:
    """Return the median size of the nonzero elements of a sample; 0 where all are zero."""
    sizes = sampled(tensor).abs()
    sizes = sizes[sizes > 0]
    return float(sizes.median()) if len(sizes) else 0.0


def near(found: torch.Tensor, wanted: torch.Tensor, share: float, least: float) -> torch.Tensor:
    """Return which elements are apart by at most `share` of their size, or of `least` where they are smaller."""
    return (found - wanted).abs_() <= share * wanted.abs().clamp_min_(least)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two contiguous, finite tensors of one shape, dtype and device that are not equal.

    `dtypes` are the original dtypes of both sides. `interval` is max(r) - min(r) of the reference and `peir` the
    difference in units of it; `limit` is the PEIR that rounding may leave. Pairs of integers are `exact`: no
    difference may remain. `typical` is the size of an ordinary element of the reference.
    """

    reference: torch.Tensor
    candidate: torch.Tensor
    dtypes: tuple[torch.dtype, torch.dtype]
    interval: float
    peir: float
    limit: float
    typical: float
    exact: bool

    @property
    def visible(self) -> bool:
        """Return whether the pair differs by more than rounding can explain."""
        return self.peir > (0 if self.exact else max(VISIBLE, self.limit))

    def remains(self, predicted: torch.Tensor, found: torch.Tensor) -> float:
        """Return max|predicted - found| in units of the reference's interval; two tensors of one shape."""
        return float((predicted - found).abs_().max()) / self.interval

    def explained(self, error: float, before: float | None = None) -> bool:
        """Return whether a relation that leaves this PEIR explains the pair, or a part whose PEIR was `before`."""
        whole = self.peir if before is None else before
        return error <= self.limit and error <= _EXPLAINED * whole

    def improves(self, reference: torch.Tensor, predicted: torch.Tensor, found: torch.Tensor) -> bool:
        """Return whether most elements that were off agree one by one with the prediction of a relation.

        All three have one shape: the reference's part, the prediction for it, and the candidate's part.
        """
        if self.exact:
            return torch.equal(predicted, found)
        share = loose(self.limit)
        off = ~near(reference, found, share, self.typical)
        well = near(predicted, found, share, self.typical)
        count = int(off.sum())
        return int((off & well).sum()) >= MOST * count and int((~off & ~well).sum()) <= (1 - MOST) * count

    def differing(self, reference: torch.Tensor, candidate: torch.Tensor) -> int:
        """Return how many elements visibly differ; only these can show whether a relation holds."""
        least = 0 if self.exact else max(VISIBLE, self.limit) * self.interval
        return int(((reference - candidate).abs_() > least).sum())

    def lines(self, axis: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return up to `most` lines along an axis, [lines, n] of each side, spread over the other axes."""
        return _lines(self.reference, axis, most), _lines(self.candidate, axis, most)

    def rows(self, most: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of the last axis of each side: as many as a sample may hold, at most `most` and at least 2."""
        return self.lines(-1, max(2, min(most, SAMPLE // self.reference.shape[-1])))


def difference_of(reference: torch.Tensor, candidate: torch.Tensor, found: Statistics) -> Difference | None:
    """Return the pair prepared for the search, None where no relation is searched for.

    The result is None where the pair is equal, holds NaN or Inf, or is complex, and where the reference is constant:
    it has no interval to measure an error against. `found` are the pair's statistics.
    """
    dtypes = reference.dtype, candidate.dtype
    if found.non_finite is not None or not found.peir or reference.shape != candidate.shape or not reference.dim():
        return None
    if found.reference_min is None or found.reference_max is None or found.max is None:
        return None
    if reference.is_complex() or candidate.is_complex():
        return None
    exact = not (reference.is_floating_point() or candidate.is_floating_point())
    largest = max(abs(found.reference_min), abs(found.reference_max)) + found.max
    reference, candidate = plain(reference), plain(candidate)
    narrow = reference.is_floating_point() and candidate.is_floating_point()
    working = (
        torch.promote_types(torch.promote_types(reference.dtype, candidate.dtype), torch.float32) if narrow else None
    )
    if working is None:
        working = torch.float64
        if largest >= _WHOLE:
            return None
    elif not 4 * largest < torch.finfo(working).max:
        return None
    interval = found.reference_max - found.reference_min
    limit = 0.0 if exact else rounding_tolerance(dtypes, _DEPTH)
    # mps has no float64.
    device = torch.device("cpu") if reference.device.type == "mps" else reference.device
    first, second = (x.detach().to(device=device, dtype=working).contiguous() for x in (reference, candidate))
    return Difference(first, second, dtypes, interval, found.peir, limit, typical(first), exact)


def _lines(tensor: torch.Tensor, axis: int, most: int) -> torch.Tensor:
    moved = tensor.movedim(axis, -1)
    if moved.dim() == 1:
        return moved[None]
    outer = moved.shape[:-1]
    chosen = picks(outer.numel(), most, tensor.device)
    lines: torch.Tensor = moved[torch.unravel_index(chosen, outer)]
    return lines
