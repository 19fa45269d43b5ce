"""Finds where a pair differs: from one position on, in some rows, tokens, heads or channels; finds shifts, too."""

from __future__ import annotations

import math
from typing import Any

import torch

from qtrace.numerics.measurement import measure
from qtrace.numerics.relations.difference import SAMPLE, Difference
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import Relation

# More than half of an axis is no location; "from one position on" may be more.
_MOST = 0.5
# exp(-6) is the chance that as many scattered elements all lie at these indices.
_EVIDENCE = 6.0
# Without a gap to the rest, the tolerance would set the border, not the difference.
_GAP = 4.0
_MOST_RANGES = 16
_DEPTH = 100
# A shift must make at least this many elements agree that differed before.
_LEAST_DIFFERING = 8
# Positions at which one value may recur; with more, the pattern counts as periodic and the search stops.
_TRIES = 16


def where(reference: torch.Tensor, candidate: torch.Tensor, tolerance: float) -> Relation | None:
    """Return the relation "where" of a pair that differs at some indices of one axis only, else None.

    Args:
        reference: any shape, finite.
        candidate: the same shape, finite.
        tolerance: the PEIR up to which elements agree; integers and bools must be equal.

    The relation is evidence, not agreement. Its axis is the one of which the smallest part differs: at most half of
    the indices or, on any but the last of several axes, all from one position on. `parameters` are

        axis      -1 for the last, else counted from 0
        size      of the axis
        count     of the indices at which any element differs
        indices   these, as [first, last] ranges, at most 16 of them
        from      the first index, where all from there on differ
        share     of all elements that differ
        factor    where the differing part of the candidate is one factor times the reference's

    `error` is the PEIR of the rest. The result is also None where the pair agrees, where a side holds NaN or Inf,
    where the differing elements are few and scattered, or where the smallest peak at these indices is less than four
    times the largest elsewhere.
    """
    if reference.shape != candidate.shape or not reference.dim() or reference.is_complex() or candidate.is_complex():
        return None
    found = measure(reference, candidate).result()
    if found.non_finite is not None or not found.max or found.reference_min is None or found.reference_max is None:
        return None
    exact = not (reference.is_floating_point() or candidate.is_floating_point())
    interval = found.reference_max - found.reference_min
    first, second = reference.detach(), candidate.detach().to(reference.device)
    apart = first != second if exact else _distances(first, second) > tolerance * interval
    touched = int(apart.sum())
    best: tuple[float, int, torch.Tensor] | None = None
    for axis in range(apart.dim()):
        hit = apart.movedim(axis, 0).flatten(1).any(1) if apart.dim() > 1 else apart
        size, count = len(hit), int(hit.sum())
        if not 0 < count < size or not _telling(hit, count, touched, ordered=axis < apart.dim() - 1 or axis == 0):
            continue
        if best is None or count / size <= best[0]:
            best = count / size, axis, hit
    if best is None:
        return None
    _, axis, hit = best
    peaks = (
        _distances(first, second).movedim(axis, 0).flatten(1).amax(1) if first.dim() > 1 else _distances(first, second)
    )
    outside = float(peaks[~hit].max())
    if float(peaks[hit].min()) < _GAP * outside:
        return None
    indices = hit.nonzero().flatten()
    parameters: dict[str, Any] = {
        "axis": axis if axis < apart.dim() - 1 else -1,
        "size": len(hit),
        "count": len(indices),
        "indices": _ranges(indices.tolist())[:_MOST_RANGES],
        "share": touched / apart.numel(),
    }
    if len(hit) - len(indices) == int(indices[0]):
        parameters["from"] = int(indices[0])
    factor = None if exact else _factor(first.index_select(axis, indices), second.index_select(axis, indices))
    if factor is not None:
        parameters["factor"] = factor
    return Relation("where", parameters, outside / interval if interval else 0.0)


def masked_positions(
    reference: torch.Tensor, candidate: torch.Tensor, hidden: torch.Tensor, tolerance: float
) -> Relation | None:
    """Return the relation "masked_positions" of a pair that differs only where the inputs are masked, else None.

    Args:
        reference: any shape with an axis of batch rows and one of tokens behind it, finite.
        candidate: the same shape, finite.
        hidden: bools [batch, tokens]: true at the positions that the mask of the inputs hides.
        tolerance: the PEIR up to which elements agree.

    What stands at a hidden position is read by nobody, so this is no agreement but a reason. `parameters` are `first`
    and `last`, the range of hidden positions at which anything differs, `rows` the batch rows; `error` is the PEIR of
    all other positions.
    """
    if reference.shape != candidate.shape or not reference.is_floating_point() or reference.dim() < 2:
        return None
    found = measure(reference, candidate).result()
    if found.non_finite is not None or not found.max or found.reference_min is None or found.reference_max is None:
        return None
    interval = found.reference_max - found.reference_min
    apart = _distances(reference.detach(), candidate.detach().to(reference.device)) > tolerance * interval
    hidden = hidden.to(reference.device)
    for axis in range(1, apart.dim()):
        if (apart.shape[0], apart.shape[axis]) != tuple(hidden.shape):
            continue
        at = apart.movedim(axis, 1).flatten(2).any(2) if apart.dim() > 2 else apart
        if bool(at.any()) and not bool((at & ~hidden).any()):
            tokens, rows = (at.any(dim).nonzero().flatten().tolist() for dim in (0, 1))
            visible = (~hidden).reshape(
                hidden.shape[0], *[1] * (axis - 1), hidden.shape[1], *[1] * (apart.dim() - axis - 1)
            )
            rest = _distances(reference.detach(), candidate.detach().to(reference.device)) * visible
            parameters = {"first": tokens[0], "last": tokens[-1], "rows": rows[:_MOST_RANGES]}
            return Relation("masked_positions", parameters, float(rest.max()) / interval if interval else 0.0)
    return None


def _telling(hit: torch.Tensor, count: int, touched: int, *, ordered: bool) -> bool:
    """Return whether these indices are a location, rather than the chance positions of a few scattered elements."""
    size = len(hit)
    within = touched * math.log(count / size)
    # All from one position on; for channels that would mean nothing.
    if ordered and bool(hit[size - count :].all()) and within + math.log(size) <= -_EVIDENCE:
        return True
    choices = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return count <= _MOST * size and within + choices <= -_EVIDENCE


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    narrow = first.is_floating_point() and second.is_floating_point()
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    working = dtype if narrow else torch.float64
    return (first.to(working) - second.to(working)).abs_()


def _factor(reference: torch.Tensor, candidate: torch.Tensor) -> float | None:
    """Return the one factor that maps the reference's part to the candidate's, None if there is none."""
    first, second = reference.double(), candidate.double()
    energy, most = float((first * first).sum()), float(first.abs().max())
    if first.numel() < 2 or not energy:
        return None
    factor = float((first * second).sum()) / energy
    missed = float((second - factor * first).abs().max())
    limit = rounding_tolerance((reference.dtype, candidate.dtype), _DEPTH)
    changed = float((second - first).abs().max())
    return factor if missed <= limit * abs(factor) * most and missed <= 0.1 * changed else None


def _ranges(indices: list[int]) -> list[list[int]]:
    """Return sorted indices as inclusive ranges.

    >>> _ranges([0, 1, 2, 7, 9, 10])
    [[0, 2], [7, 7], [9, 10]]
    """
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ranges


def shifted_relation(difference: Difference) -> Relation | None:
    """Return the relation "shifted" where candidate[i] = reference[i - by] along one axis, else None.

    `by` may be negative and is at most half of the axis; the values that enter at the edge are arbitrary. The second
    to last axis is tried first, then the others. `parameters` are {"axis", "by"}, the axis -1 or counted from 0;
    `error` is the PEIR over the overlap.
    """
    if not difference.visible:
        return None
    rank = difference.reference.dim()
    for axis in sorted(range(rank), key=lambda axis: (axis != rank - 2, axis)):
        if difference.reference.shape[axis] < 2:
            continue
        by = _by(difference, axis)
        if by is not None:
            error = _overlap(difference, difference.reference, difference.candidate, axis, by)
            if error is not None:
                return Relation("shifted", {"axis": axis if axis < rank - 1 else -1, "by": by}, error)
    return None


def _by(difference: Difference, axis: int) -> int | None:
    """Return the shift that some lines along the axis show: found by one value of the candidate, checked with all."""
    size = difference.reference.shape[axis]
    r, c = difference.lines(axis, max(4, min(64, SAMPLE // size)))
    near = difference.limit * difference.interval
    for place in dict.fromkeys((size // 2, size // 4, size * 3 // 4)):
        distances = (r - c[:, place, None]).abs_().amax(0)
        found = [place - int(i) for i in (distances <= near).nonzero().flatten()]
        fitting = sorted((by for by in found if by and abs(by) <= size // 2), key=abs)
        for by in fitting[:_TRIES]:
            kept, moved = _windows(r, c, 1, by)
            if difference.remains(kept, moved) <= difference.limit:
                return by
    return None


def _overlap(
    difference: Difference, reference: torch.Tensor, candidate: torch.Tensor, axis: int, by: int
) -> float | None:
    """Return the PEIR of the overlap, None unless the overlap agrees because of the shift."""
    kept, moved = _windows(reference, candidate, axis, by)
    error = difference.remains(kept, moved)
    if not error <= difference.limit:
        return None
    still = reference.narrow(axis, max(by, 0), moved.shape[axis])
    if difference.differing(still, moved) < _LEAST_DIFFERING:
        return None
    if not difference.explained(error, difference.remains(still, moved)):
        return None
    return error if difference.improves(still, kept, moved) else None


def _windows(reference: torch.Tensor, candidate: torch.Tensor, axis: int, by: int) -> tuple[torch.Tensor, torch.Tensor]:
    overlap = reference.shape[axis] - abs(by)
    return reference.narrow(axis, max(-by, 0), overlap), candidate.narrow(axis, max(by, 0), overlap)
