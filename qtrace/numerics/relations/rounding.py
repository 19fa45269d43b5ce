"""Finds values that were rounded to a coarser dtype or to a uniform grid, or cut off at a bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from qtrace.numerics.relations.difference import Difference, sampled
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import Relation

# Finest first: values cast to a coarse dtype are not the nearest ones of a finer dtype.
_COARSE = tuple(
    getattr(torch, name) for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)
)
_FEWEST = 16
_MOST_LEVELS = 1 << 16
_BLOCK = 1 << 20
# A value is on the grid when it is off by less than this share of a step.
_ON_GRID = 0.02
# Where not all levels are used, even the smallest gap may be several steps.
_DIVISORS = range(1, 5)
# Where a larger share is cut off, the grid's ends and not its steps determine the values.
_MOST_CUT = 0.5
_EXPLAINED = 0.1
_DEPTH = 100

# One value at a bound may be any fault; several, all cut to one value, are a bound.
_PLATEAU = 2
# Elements that were cut off equal the bound bit for bit, except a few that rounding has put on its other side.
_FLAT = 0.9
# The rest must agree, and be enough to be evidence.
_UNTOUCHED = 0.1
_EVIDENCE = 8

Rounding = Callable[[torch.Tensor], torch.Tensor]


def cast_relation(difference: Difference) -> Relation | None:
    """Return the relation "cast" where candidate = reference rounded to a dtype coarser than its own, else None.

    The dtypes tried are float16, bfloat16, float8_e4m3fn and float8_e5m2; values beyond a dtype's range are clamped
    to its ends. Each of the candidate's values must be a value of that dtype, and the nearest one to the reference's,
    except for rounding of the reference itself. `parameters` are {"dtype"}; `error` is by how much, as a PEIR, the
    candidate is farther off than the nearest value.
    """
    if difference.exact or difference.reference.numel() < _FEWEST:
        return None
    for dtype in _COARSE:
        if _eps(dtype) <= _eps(difference.dtypes[0]):
            continue
        most = torch.finfo(dtype).max

        def cast(x: torch.Tensor, dtype: torch.dtype = dtype, most: float = most) -> torch.Tensor:
            return x.clamp(-most, most).to(dtype).to(x.dtype)

        error = _excess(difference, cast, cast, 0.0)
        if error is not None:
            return Relation("cast", {"dtype": str(dtype).removeprefix("torch.")}, error)
    return None


def rounded_relation(difference: Difference) -> Relation | None:
    """Return the relation "rounded" where the candidate is the reference on a uniform grid, else None.

    The grid is derived from the candidate's own values and ends at the smallest and largest of them. Each value must
    be the nearest one to the reference's, except for rounding of the reference itself; truncated values are not.
    `parameters` are {"step", "levels"}, levels from the smallest to the largest, and "clipped", the fraction of
    elements beyond the ends, if any; `error` is by how much, as a PEIR, the candidate is farther off than the
    nearest level.
    """
    reference, candidate = difference.reference, difference.candidate
    if difference.exact or reference.numel() < _FEWEST:
        return None
    lo, hi = float(candidate.min()), float(candidate.max())
    values = torch.unique(sampled(candidate)).double()
    step = _step(values, 4 * torch.finfo(candidate.dtype).eps * max(abs(lo), abs(hi)))
    if step is None or (hi - lo) / step > _MOST_LEVELS:
        return None
    last = round((hi - lo) / step)

    def level(x: torch.Tensor) -> torch.Tensor:
        return x.sub(lo).div_(step).round_().clamp_(0, last).mul_(step).add_(lo)

    error = _excess(difference, level, level, _ON_GRID * step)
    if error is None:
        return None
    cut = int(((reference < lo - step / 2) | (reference > hi + step / 2)).sum()) / reference.numel()
    if cut > _MOST_CUT:
        return None
    parameters: dict[str, Any] = {"step": step, "levels": last + 1}
    return Relation("rounded", parameters | ({"clipped": cut} if cut else {}), error)


def _excess(difference: Difference, nearest: Rounding, snap: Rounding, off: float) -> float | None:
    """Return by how much the candidate exceeds the error of rounding, as a PEIR; None if it is no such rounding."""
    limit = min(rounding_tolerance(difference.dtypes[:1], _DEPTH), _EXPLAINED * difference.peir)
    sides = difference.reference.reshape(-1), difference.candidate.reshape(-1)
    most = 0.0
    # The sample first: it rules out most pairs.
    sample = tuple(sampled(x) for x in sides)
    for r, c in (sample, *zip(torch.split(sides[0], _BLOCK), torch.split(sides[1], _BLOCK), strict=True)):
        if not bool(((snap(c) - c).abs_() <= off).all()):
            return None
        excess = float(((c - r).abs_() - (nearest(r) - r).abs_()).max()) / difference.interval
        if not excess <= limit:
            return None
        most = max(most, excess)
    return most


def _step(values: torch.Tensor, noise: float) -> float | None:
    """Return the step of the grid on which sorted, different values lie to within `noise`, None if there is none."""
    if len(values) < 2:
        return None
    places = values - values[0]
    gap = float(places.diff().min())
    for divisor in _DIVISORS:
        step = gap / divisor
        counts = (places / step).round()
        if not 1 <= float(counts[-1]) <= _MOST_LEVELS:
            return None
        step = float(counts.dot(places) / counts.dot(counts))
        if float((places - counts * step).abs().max()) <= max(noise, _ON_GRID / 2 * step) and noise < _ON_GRID * step:
            return step
    return None


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else math.inf


def clipped_relation(difference: Difference) -> Relation | None:
    """Return the relation "clipped" where candidate = min(max(reference, lo), hi), else None.

    At least a tenth of the elements must be untouched. `parameters` are "lo" and "hi", where they cut off any
    element, and "share", the fraction of elements cut off; `error` is the PEIR of the clipped reference against the
    candidate.
    """
    reference, candidate = difference.reference, difference.candidate
    lo, hi = float(candidate.min()), float(candidate.max())
    near = difference.limit * difference.interval
    if difference.exact or not lo < hi or not (reference.min() < lo - near or reference.max() > hi + near):
        return None
    clipped = reference.clamp(lo, hi)
    error = difference.remains(clipped, candidate)
    if not difference.explained(error) or not difference.improves(reference, clipped, candidate):
        return None
    below, above = int((reference < lo - near).sum()), int((reference > hi + near).sum())
    untouched = reference.numel() - below - above
    at_lo, at_hi = int((candidate == lo).sum()), int((candidate == hi).sum())
    if at_lo < _FLAT * below or at_hi < _FLAT * above:
        return None
    if max(below, above) < _PLATEAU or untouched < max(_EVIDENCE, _UNTOUCHED * reference.numel()):
        return None
    parameters: dict[str, Any] = {"share": (below + above) / reference.numel()}
    parameters |= {"lo": lo} if below else {}
    parameters |= {"hi": hi} if above else {}
    return Relation("clipped", parameters, error)
