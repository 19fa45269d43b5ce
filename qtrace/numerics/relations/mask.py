"""Compares attention masks by their pattern of allowed and blocked entries, whatever value stands for "blocked"."""

from __future__ import annotations

from typing import Any

import torch

from qtrace.report.records import Relation

# exp(-50) is 2e-22: below this an entry has no effect in a softmax of any float type; a true "-inf" is below -1e4.
_BLOCKED = -50.0
FILL = -1e4


def mask_relation(reference: torch.Tensor, candidate: torch.Tensor) -> Relation | None:
    """Return the relation "mask" of two masks of one shape that block the same entries, else None.

    At least one side must be additive; the other may be bool, with True for allowed. An additive mask must hold
    a fill below -1e4, and blocks an entry where it is below -50. `parameters` are "reference_fill" and
    "candidate_fill", the largest fill of each additive side. `error` is the PEIR over the allowed entries only,
    where a bool mask adds 0; it is in logits where the reference's allowed entries are all equal. A row that is -inf
    throughout has a softmax of NaN: a side with such a row and one without are not the same.
    """
    if reference.shape != candidate.shape or not (_additive(reference) or _additive(candidate)):
        return None
    if not all(_additive(side) or side.dtype is torch.bool for side in (reference, candidate)):
        return None
    first, second = reference.detach(), candidate.detach().to(reference.device)
    blocked = blocked_entries(first)
    if not bool(blocked.any()) or not torch.equal(blocked, blocked_entries(second)):
        return None
    parameters: dict[str, Any] = {
        name: float(side[blocked].max())
        for name, side in (("reference_fill", first), ("candidate_fill", second))
        if _additive(side)
    }
    if min(parameters.values()) > FILL or not all(_is_fill(side[blocked]) for side in (first, second)):
        return None
    allowed = ~blocked
    if not bool(allowed.any()) or _yields_nan(first) != _yields_nan(second):
        return None
    logits = [side[allowed].double() if _additive(side) else torch.zeros(()) for side in (first, second)]
    mine, theirs = (part.to(first.device) for part in logits)
    interval = float(mine.max() - mine.min())
    error = float((mine - theirs).abs().max()) / (interval if interval > 0 else 1.0)
    if not error < float("inf"):
        return None
    return Relation("mask", parameters, error)


def blocked_entries(mask: torch.Tensor) -> torch.Tensor:
    """Return, as bool, which entries an additive or a bool mask (True is allowed) blocks."""
    return mask < _BLOCKED if _additive(mask) else ~mask


def _yields_nan(mask: torch.Tensor) -> bool:
    """Return whether a softmax over the last axis gives NaN anywhere, because a row has no finite entry."""
    return _additive(mask) and mask.dim() > 0 and bool(torch.isneginf(mask).all(-1).any())


def _is_fill(values: torch.Tensor) -> bool:
    """Return whether blocked entries hold a fill (or the sum of two), not data that happens to be low."""
    if not _additive(values):
        return True
    low, high = (float(v) for v in torch.aminmax(values))
    return high <= -1e30 or high - low <= 0.01 * abs(high)


def _additive(mask: torch.Tensor) -> bool:
    return mask.is_floating_point()
