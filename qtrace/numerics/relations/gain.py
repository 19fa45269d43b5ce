"""Finds one factor, or one factor per channel, between two tensors, as a scale folded into a weight leaves it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from qtrace.numerics.measurement import measure
from qtrace.numerics.relations.difference import MOST, VISIBLE, Difference, loose, near, sampled, typical
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import Relation, Statistics

# Only tensors of the same direction that still differ by more than rounding are examined further.
_SAME_DIRECTION = 0.999
# With the factor removed, the rest must be rounding, of a depth that any model has.
_DEPTH = 100
_UNEXPLAINED = 0.25
_LEFT_OVER = 0.25
_BLOCK = 1 << 20
# This share of the nonzero channels must fit one by one; very faint channels are lost in the others' rounding.
_FITTING = 0.9
# A few channels that deviate from a common factor are no folded scale: a damaged row looks like that.
_MOST = 0.5
# Rows must leave a common direction by this many tolerances.
_APART = 3.0
# A fit must be this unlikely, in bits, to arise by chance.
_EVIDENCE = 20.0


def gain_relation(reference: torch.Tensor, candidate: torch.Tensor, found: Statistics) -> Relation | None:
    """Return the relation "gain" where candidate = factor x reference up to rounding, else None.

    Args:
        reference: any shape, floating.
        candidate: the same shape, floating.
        found: the pair's statistics; they show at no cost whether a search is worthwhile.

    The factor is <r, c> / <r, r>. `parameters` are {"factor": …} and, for a simple factor, its name
    ("1/sqrt(32)"); `error` is the PEIR of candidate / factor against the reference.
    """
    if found.cosine is None or found.peir is None or found.non_finite is not None:
        return None
    rounding = rounding_tolerance((reference.dtype, candidate.dtype), _DEPTH)
    if not (abs(found.cosine) > _SAME_DIRECTION and found.peir > max(VISIBLE, rounding)) or _is_left_over(found):
        return None
    first, second = reference.detach().reshape(-1), candidate.detach().to(reference.device).reshape(-1)
    factor = _factor(first, second)
    if factor == 0 or not math.isfinite(factor):
        return None
    working = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    error = measure(first, second.to(working) / factor).result().peir
    # A fault also fits into a coarse dtype's tolerance: the factor itself must account for the difference.
    if error is None or not error <= min(rounding, found.peir * _UNEXPLAINED):
        return None
    few, others = sampled(first).to(working), sampled(second).to(working) / factor
    if float(near(others, few, loose(rounding), typical(few)).double().mean()) < MOST:
        return None
    parameters: dict[str, Any] = {"factor": factor}
    name = _simple_name(factor)
    if name is not None:
        parameters["name"] = name
    return Relation("gain", parameters, error)


def _is_left_over(found: Statistics) -> bool:
    """Return whether more than half of the difference, in L2, remains once the best factor is removed.

    With s = ||c|| / ||r||, the rest is s² (1 - cosine²), against rel_l2² = 1 + s² - 2 s cosine.
    """
    if found.cosine is None or not found.rel_l2:
        return False
    square = found.cosine**2
    size = abs(found.cosine) + math.sqrt(max(0.0, square - 1 + found.rel_l2**2))
    if found.rel_l2 < 1 and found.cosine > 0:
        # Of the two solutions the smaller s leaves less.
        size = min(size, abs(found.cosine) - math.sqrt(max(0.0, square - 1 + found.rel_l2**2)))
    return size**2 * (1 - square) > _LEFT_OVER * found.rel_l2**2


def _factor(first: torch.Tensor, second: torch.Tensor) -> float:
    product = energy = 0.0
    for r, c in zip(torch.split(first, _BLOCK), torch.split(second, _BLOCK), strict=True):
        r, c = r.double(), c.double()
        product += float(r.dot(c))
        energy += float(r.dot(r))
    return product / energy if energy else math.nan


def _simple_name(factor: float) -> str | None:
    """Return the name of a factor that is commonly folded: n, 1/n, sqrt(n), 1/sqrt(n), with a sign.

    >>> _simple_name(0.1767767), _simple_name(-0.125), _simple_name(0.3)
    ('1/sqrt(32)', '-1/8', None)
    """
    sign, size = ("-" if factor < 0 else ""), abs(factor)
    for power, plain in ((1, "{}"), (2, "sqrt({})")):
        for value, form in ((size**power, plain), (size**-power, "1/" + plain)):
            whole = round(value)
            if 1 <= whole <= 16384 and abs(value - whole) < 1e-5 * whole:
                return sign + form.format(whole)
    return None


def channel_gain_relation(difference: Difference) -> Relation | None:
    """Return the relation "channel_gain" where candidate = factor of the channel x reference, else None.

    The channels are on the last axis or, from rank 4 on, on axis 1 (images). Other axes are not tried: a
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
    """Return whether all rows are multiples of one, up to the tolerance: then any other such rows would fit as well."""
    # Each channel is in units of its own norm, since the search is for gains.
    rows = rows.double()
    rows = rows / rows.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    energies = torch.linalg.eigvalsh(rows @ rows.T)
    return float(energies[-2]) <= (_APART * share) ** 2 * float(energies[-1])


def _holds(fits: _Fits, share: float) -> bool:
    """Return whether most channels follow the reference's, to within a share of the variation of these.

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
    # The rounding of float64 in a channel without any spread is not spread.
    return _Fits(products, squares, answers, torch.where(spread > 1e-12 * squares, spread, 0.0))


def _blocks(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Yield slices over rows and channels that cut [rows, channels, inner] into blocks of about 2^20 elements."""
    wide = min(shape[1], max(1, _BLOCK // shape[2]))
    step = max(1, _BLOCK // (wide * shape[2]))
    for row in range(0, shape[0], step):
        for channel in range(0, shape[1], wide):
            yield slice(row, row + step), slice(channel, channel + wide)
