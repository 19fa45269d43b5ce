"""The same values some places further along an axis."""

from __future__ import annotations

import torch

from qtrace.numerics.relations.difference import SAMPLE, Difference
from qtrace.report.records import Relation

# So many elements must come right that were wrong before.
_EVIDENCE = 8
# Places at which one value may be found again, before a pattern counts as periodic and is given up.
_TRIES = 16


def shifted_relation(difference: Difference) -> Relation | None:
    """Return the relation "shifted" where candidate[i] = reference[i - by] along one axis, else None.

    `by` may be negative and is at most half of the axis; what enters at the edge may be anything. The second
    to last axis is asked first, then the others. `parameters` are {"axis", "by"}, the axis -1 or counted from 0;
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
    """Return the shift that some lines along the axis show: one value of the candidate is looked up, then all."""
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
    """Return the PEIR of the overlap, None unless the shift is what makes it agree."""
    kept, moved = _windows(reference, candidate, axis, by)
    error = difference.remains(kept, moved)
    if not error <= difference.limit:
        return None
    still = reference.narrow(axis, max(by, 0), moved.shape[axis])
    if difference.differing(still, moved) < _EVIDENCE:
        return None
    if not difference.explained(error, difference.remains(still, moved)):
        return None
    return error if difference.improves(still, kept, moved) else None


def _windows(reference: torch.Tensor, candidate: torch.Tensor, axis: int, by: int) -> tuple[torch.Tensor, torch.Tensor]:
    overlap = reference.shape[axis] - abs(by)
    return reference.narrow(axis, max(-by, 0), overlap), candidate.narrow(axis, max(by, 0), overlap)
