"""Conventions: says which relations are the candidate's own way to hold a value, and converts values into them."""

from __future__ import annotations

import torch

from qtrace.numerics.measurement import measure
from qtrace.numerics.relations.difference import Difference, difference_of
from qtrace.numerics.relations.gain import channel_factors, channel_gain_relation
from qtrace.numerics.relations.layout import with_layout, with_layout_undone
from qtrace.numerics.relations.mask import blocked_entries, mask_relation
from qtrace.numerics.relations.permutation import channel_permutation, halves_order
from qtrace.numerics.relations.procrustes import rotation_matrix
from qtrace.report.records import Relation

# The candidate holds the reference's values in another form, which later code may undo.
CONVENTIONS = frozenset({"layout", "mask", "gain", "channel_gain", "rotation", "halves", "permuted_channels"})
# The candidate has lost or changed values; how it did is evidence and no excuse.
DESCRIPTIONS = frozenset({"shifted", "clipped", "cast", "rounded", "where", "masked_positions"})
# These hardly come about by accident, and whoever takes such a tensor must know of it.
DELIBERATE = frozenset({"channel_gain", "rotation", "halves", "permuted_channels"})


def excuses(relation: Relation | None) -> bool:
    """Return whether the candidate's tensor holds the reference's values in a convention of its own.

    If so, `relation.error` is the difference that remains under it (`peir_related`). The error of any other relation
    is evidence only: the part of the pair that it covers agrees, but the whole pair does not. So is a layout that the
    shapes alone suggest.
    """
    if relation is None or (relation.kind == "layout" and relation.parameters.get("presumed")):
        return False
    return relation.kind in CONVENTIONS


def into_candidate(relation: Relation, reference: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
    """Return the reference's values as the candidate would hold them, None where that cannot be determined.

    Args:
        relation: how `like` is related to `reference`, as found by `undo_layout` and `relate`.
        reference: any shape.
        like: the candidate's tensor; the result has its shape, strides, dtype and device, and memory of its own.

    Relations that can be applied: layout, gain, channel_gain, halves, permuted_channels, rotation and mask, each
    also together with a layout. Factors, orders and rotations that are too long for `parameters` are derived from the
    pair again. Where the pair is no longer so related, or has too few tokens to determine the rotation, the result is
    None. For a bool `like` the mask is returned as bool; an additive one takes the candidate's fill.
    """
    if not reference.numel() or not like.numel():
        return None
    found = with_layout_undone(like.detach(), reference.shape, relation.parameters)
    values = _values(relation, reference.detach(), found) if found is not None else None
    if values is None:
        return None
    given = with_layout(values, like.shape, relation.parameters)
    # The strides of `like` are kept: the candidate's code may ask for a view of this tensor.
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
    if relation.kind not in ("channel_gain", "permuted_channels", "rotation"):
        return None
    difference = difference_of(reference, found, measure(reference, found).result())
    if difference is None:
        return None
    if relation.kind == "channel_gain":
        return _with_factors(difference, reference, parameters["axis"])
    if relation.kind == "rotation":
        return _rotated(difference, reference)
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


def _rotated(difference: Difference, reference: torch.Tensor) -> torch.Tensor | None:
    turn = rotation_matrix(difference)
    if turn is None:
        return None
    return (difference.reference.to(turn.dtype) @ turn).to(reference.device)


def _with_fill(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor | None:
    relation = mask_relation(reference, found)
    if relation is None:
        return None
    blocked = blocked_entries(reference)
    if not found.is_floating_point():
        return ~blocked
    allowed = reference if reference.is_floating_point() else torch.zeros_like(blocked, dtype=found.dtype)
    # A candidate may block with several fills; each keeps its place.
    return torch.where(blocked, found.to(reference.device, allowed.dtype), allowed)
