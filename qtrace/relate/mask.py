"""Additive attention masks: the same pattern of allowed and blocked, whatever number stands for "blocked"."""

from __future__ import annotations

import torch

from qtrace.records import Relation

# exp(-50) is 2e-22: below this an entry is out of a softmax in any float type; a true "-inf" is below -1e4.
_BLOCKED = -50.0
_FILL = -1e4


def mask_relation(reference: torch.Tensor, candidate: torch.Tensor) -> Relation | None:
    """Return the relation "mask" of two additive masks of one shape that block the same entries, else None.

    At least one side must hold a fill below -1e4, and an entry is blocked where it is below -50. `parameters`
    are the two largest fills; `error` is max|reference - candidate| over the allowed entries, in logits.
    """
    if reference.shape != candidate.shape or not (reference.is_floating_point() and candidate.is_floating_point()):
        return None
    first, second = reference.detach(), candidate.detach().to(reference.device)
    blocked = first < _BLOCKED
    if not bool(blocked.any()) or not torch.equal(blocked, second < _BLOCKED):
        return None
    fills = float(first[blocked].max()), float(second[blocked].max())
    if min(fills) > _FILL:
        return None
    allowed = ~blocked
    if not bool(allowed.any()):
        return None
    error = float((first[allowed].double() - second[allowed].double()).abs().max())
    if not error < float("inf"):
        return None
    return Relation("mask", {"reference_fill": fills[0], "candidate_fill": fills[1]}, error)
