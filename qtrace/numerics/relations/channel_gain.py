"""One factor per channel: what remains of scales that were folded into a weight, one for each of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from qtrace.numerics.relations.difference import Difference
from qtrace.numerics.relations.elements import loose
from qtrace.numerics.relations.gain import VISIBLE
from qtrace.report.records import Relation

# So many of the channels that are not zero must fit one by one; very faint ones drown in the others' rounding.
_FITTING = 0.9
# Few channels apart from a common factor are no folded scale: that is what a damaged row looks like.
_MOST = 0.5
# Rows must leave a common direction by so many tolerances.
_APART = 3.0
# A fit must be this unlikely, in bits, to come about by chance.
_EVIDENCE = 20.0
_BLOCK = 1 << 20


def channel_gain_relation(difference: Difference) -> Relation | None:
    """Return the relation "channel_gain" where candidate = factor of the channel x reference, else None.

    The channels are on the last axis or, from rank 4 on, on axis 1 (images). Other axes are not asked: a
    factor per token or per batch row depends on the data, and a faulty normalization looks like that. More than
    half of the channels must have factors that differ from 1 and from the median factor. `parameters` are {"axis",
    "channels", "min", "max"}, min and max over the factors; `error` is the PEIR of candidate / factors against
    the reference. The factors come from `channel_factors`.
    """
    shape = difference.reference.shape
    if not difference.visible or difference.exact:
        return None
    for axis in (-1, 1) if len(shape) > 3 else (-1,):
        relation = _along(difference, axis)
        if relation is not None:
            return relation
    return None


def channel_factors(reference: torch.Tensor, candidate: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the factor of each channel, <r, c> / <r, r> over all other axes; float64 of shape [channels].

    Args:
        reference: any shape, floating.
        candidate: the same shape, floating.
        axis: the axis of the channels.

    Where the reference's channel is zero, the factor is 1.
    """
    return _fits(reference, candidate.to(reference.device), axis).factors


class _Fits(NamedTuple):
    """Sums over all axes but the channels': r·c, r², c² and the squares of r about its mean."""

    products: torch.Tensor
    squares: torch.Tensor
    answers: torch.Tensor
    spread: torch.Tensor

    @property
    def factors(self) -> torch.Tensor:
        return torch.where(self.squares > 0, self.products / self.squares, 1.0)


def _along(difference: Difference, axis: int) -> Relation | None:
    reference, candidate = difference.reference, difference.candidate
    channels = reference.shape[axis]
    tokens = reference.numel() // channels
    share = loose(difference.limit)
    if channels < 2 or channels * (tokens - 1) * -math.log2(share) < _EVIDENCE:
        return None
    few = difference.rows() if axis == -1 else difference.lines(axis, 64)
    if _collinear(few[0], share):
        return None
    if tokens > len(few[0]) and not _holds(_fits(few[0], few[1], -1), share):
        return None
    fits = _fits(reference, candidate, axis)
    if not _holds(fits, share):
        return None
    factors = fits.factors
    if not each_its_own(factors[fits.squares > 0], max(VISIBLE, difference.limit)):
        return None
    wide = [1] * reference.dim()
    wide[axis] = channels
    error = difference.remains(candidate / factors.to(candidate.dtype).reshape(wide), reference)
    if not difference.explained(error):
        return None
    parameters = {
        "axis": axis,
        "channels": channels,
        "min": float(factors.min()),
        "max": float(factors.max()),
    }
    return Relation("channel_gain", parameters, error)


def _collinear(rows: torch.Tensor, share: float) -> bool:
    """Return whether all rows are multiples of one, up to the tolerance: then any other such rows fit as well."""
    # Each channel in units of its own norm, since gains are what is asked for.
    rows = rows.double()
    rows = rows / rows.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    energies = torch.linalg.eigvalsh(rows @ rows.T)
    return float(energies[-2]) <= (_APART * share) ** 2 * float(energies[-1])


def _holds(fits: _Fits, share: float) -> bool:
    """Return whether most channels follow the reference's, to within a share of how much these vary at all.

    Channels that are constant over the tokens fit any factor and prove nothing.
    """
    live = fits.squares > 0
    count = int(live.sum())
    if not count or bool((fits.answers[~live] > 0).any()) or bool((fits.products[live] == 0).any()):
        return False
    missed = (fits.answers - fits.products * fits.factors)[live]
    allowed = (share * fits.factors[live]).square() * fits.spread[live]
    return int((missed < allowed).sum()) >= _FITTING * count


def each_its_own(factors: torch.Tensor, least: float) -> bool:
    """Return whether more than half of the factors differ from 1 and from the median one, by more than `least`."""
    common = factors.median()
    moved = ((factors - 1).abs() > least) & ((factors - common).abs() > least * common.abs())
    return int(moved.sum()) > _MOST * factors.numel()


def _fits(reference: torch.Tensor, candidate: torch.Tensor, axis: int) -> _Fits:
    axis %= reference.dim()
    channels = reference.shape[axis]
    inner = reference.shape[axis + 1 :].numel()
    first, second = (x.detach().reshape(-1, channels, inner) for x in (reference, candidate))
    sums = torch.zeros(4, channels, dtype=torch.float64, device=reference.device)
    for rows, some in _blocks(first.shape):
        r, c = first[rows, some].double(), second[rows, some].double()
        for row, term in enumerate((r * c, r * r, c * c, r)):
            sums[row, some] += term.sum((0, 2))
    products, squares, answers, means = sums
    spread = squares - means.square() / (first.shape[0] * first.shape[2])
    # What float64 leaves of a channel without any spread is not spread.
    return _Fits(products, squares, answers, torch.where(spread > 1e-12 * squares, spread, 0.0))


def _blocks(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Yield slices over rows and channels that cut [rows, channels, inner] into blocks of about 2^20 elements."""
    wide = min(shape[1], max(1, _BLOCK // shape[2]))
    step = max(1, _BLOCK // (wide * shape[2]))
    for row in range(0, shape[0], step):
        for channel in range(0, shape[1], wide):
            yield slice(row, row + step), slice(channel, channel + wide)
