"""Handing the reference's values to the candidate, in the candidate's own convention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qtrace.records import Relation
from qtrace.relate.channels import channel_factors, channel_gain_relation
from qtrace.relate.difference import Difference, difference_of
from qtrace.relate.halves import halves_order
from qtrace.relate.mask import blocked_entries, mask_relation
from qtrace.relate.permuted import channel_permutation
from qtrace.stats import measure

# What undo_layout tells about a layout; a relation found after a layout was undone carries these too.
_LAYOUT = frozenset({"permute", "reshape", "squeeze", "unsqueeze"})


def into_candidate(relation: Relation, reference: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
    """Return the reference's values as the candidate would hold them, None where that cannot be said.

    Args:
        relation: how `like` is related to `reference`, as `undo_layout` and `relate` found it.
        reference: any shape.
        like: the candidate's tensor; the result has its shape, strides, dtype and device, and memory of its own.

    Relations that can be applied: layout, gain, channel_gain, halves, permuted_channels and mask, each also
    together with a layout. Factors and orders that are too long for `parameters` are read off the pair again;
    where it is not so related any more, the result is None. A bool mask becomes one, an additive one takes
    the candidate's fill.
    """
    if reference.numel() != like.numel() or not reference.numel():
        return None
    found = _in_layout_of(reference, like.detach(), relation.parameters)
    values = _values(relation, reference.detach(), found) if found is not None else None
    if values is None:
        return None
    given = _back(values, like, relation.parameters)
    # Strides stay as they are: the candidate's code may ask for a view of this tensor.
    return torch.empty_like(like, requires_grad=False).copy_(given)


def _values(relation: Relation, reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor | None:
    """Return the reference with the relation applied, still in the reference's layout."""
    parameters = relation.parameters
    if relation.kind == "layout":
        return reference
    if relation.kind == "gain":
        return reference * float(parameters["factor"])
    if relation.kind == "halves":
        return reference.index_select(-1, halves_order(reference.shape[-1], parameters, reference.device))
    if relation.kind == "mask":
        return _with_fill(reference, found)
    if relation.kind not in ("channel_gain", "permuted_channels"):
        return None
    difference = difference_of(reference, found, measure(reference, found).result())
    if difference is None:
        return None
    if relation.kind == "channel_gain":
        return _with_factors(difference, reference, parameters["axis"])
    order = channel_permutation(difference)
    return reference.index_select(-1, order.to(reference.device)) if order is not None else None


def _with_factors(difference: Difference, reference: torch.Tensor, axis: int) -> torch.Tensor | None:
    again = channel_gain_relation(difference)
    if again is None or again.parameters["axis"] != axis:
        return None
    factors = channel_factors(difference.reference, difference.candidate, axis)
    wide = [1] * reference.dim()
    wide[axis] = len(factors)
    values: torch.Tensor = difference.reference * factors.to(difference.reference.dtype).reshape(wide)
    return values.to(reference.device)


def _with_fill(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor | None:
    relation = mask_relation(reference, found)
    if relation is None:
        return None
    blocked = blocked_entries(reference)
    if not found.is_floating_point():
        return ~blocked
    allowed = reference if reference.is_floating_point() else torch.zeros_like(blocked, dtype=found.dtype)
    # A candidate may block with several fills, each at its place.
    return torch.where(blocked, found.to(reference.device, allowed.dtype), allowed)


def _in_layout_of(reference: torch.Tensor, like: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the candidate's tensor in the reference's layout, None where another shape was never explained."""
    if not _LAYOUT & parameters.keys():
        return like if like.shape == reference.shape else None
    order = parameters.get("permute")
    if order is None:
        return like.reshape(reference.shape)
    given = [n for n in like.shape if n != 1]
    if len(given) != len(order):
        return None
    return like.reshape(given).permute(order).reshape(reference.shape)


def _back(values: torch.Tensor, like: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    order = parameters.get("permute")
    if order is None:
        return values.reshape(like.shape)
    given = [n for n in like.shape if n != 1]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return values.reshape([given[axis] for axis in order]).permute(inverse).reshape(like.shape)
