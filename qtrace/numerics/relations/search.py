"""Searches for the relation of a pair: tries every kind in turn, the likely and cheap ones first."""

from __future__ import annotations

import torch

from qtrace.numerics.relations.difference import difference_of
from qtrace.numerics.relations.extent import shifted_relation, where
from qtrace.numerics.relations.gain import channel_gain_relation, gain_relation
from qtrace.numerics.relations.mask import FILL, mask_relation
from qtrace.numerics.relations.permutation import halves_relation, permuted_relation
from qtrace.numerics.relations.procrustes import rescaled_relation, rotation_relation
from qtrace.numerics.relations.rounding import cast_relation, clipped_relation, rounded_relation
from qtrace.report.records import Relation, Statistics

# A permutation is a rotation too, and halves are a permutation: the most specific relation comes first.
_THOROUGH = (
    clipped_relation,
    cast_relation,
    rounded_relation,
    channel_gain_relation,
    halves_relation,
    shifted_relation,
    permuted_relation,
    rotation_relation,
    rescaled_relation,
)


def relate(reference: torch.Tensor, candidate: torch.Tensor, found: Statistics, *, thorough: bool) -> Relation | None:
    """Return how the candidate is related to the reference, verified by value, or None where nothing fits.

    Args:
        reference: any shape, on any device.
        candidate: the same shape; a layout must have been undone before.
        found: the statistics of the pair, all metrics.
        thorough: try every relation. Otherwise only additive masks and one gain are tried, which `found` rules out at
            no cost.

    The relation's `error` is the PEIR that remains under it; see each relation for exceptions. A pair with NaN
    or Inf can be related as masks only. Equal pairs have no relation.
    """
    if reference.shape != candidate.shape:
        return None
    additive = reference.is_floating_point() and candidate.is_floating_point()
    # Two masks that hold only zeros and a fill also differ by one factor: the fill is tried first.
    if additive and _may_be_masks(found):
        relation = mask_relation(reference, candidate)
        if relation is not None:
            return relation
    if additive:
        relation = gain_relation(reference, candidate, found)
        if relation is not None:
            return relation
    if not thorough:
        return None
    if torch.bool in (reference.dtype, candidate.dtype):
        relation = mask_relation(reference, candidate)
        if relation is not None:
            return relation
    difference = difference_of(reference, candidate, found)
    if difference is None:
        return None
    return next(filter(None, (search(difference) for search in _THOROUGH)), None)


def explanation(
    reference: torch.Tensor, candidate: torch.Tensor, found: Statistics, tolerance: float
) -> Relation | None:
    """Return how a pair that does not agree is related: any relation of the whole pair, else where it differs.

    Args:
        reference: any shape, on any device.
        candidate: the same shape; a layout must have been undone before.
        found: the statistics of the pair, all metrics.
        tolerance: the PEIR up to which elements agree; see `where`.
    """
    relation = relate(reference, candidate, found, thorough=True)
    return relation if relation is not None else where(reference, candidate, tolerance)


def _may_be_masks(found: Statistics) -> bool:
    if found.non_finite is not None:
        return True
    low = found.reference_min
    if found.max is None or low is None:
        return False
    # Beside a fill of -1e9 every other difference is invisible, so a difference of any size counts.
    return (found.max > 1.0 and low < -50.0) or (found.max > 0 and low < FILL)
