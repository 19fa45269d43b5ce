"""Finds how a candidate's tensor is related to the reference's; every relation is verified by value, never guessed."""

from qtrace.numerics.relations.convention import CONVENTIONS, DELIBERATE, DESCRIPTIONS, excuses, into_candidate
from qtrace.numerics.relations.difference import VISIBLE
from qtrace.numerics.relations.extent import masked_positions, where
from qtrace.numerics.relations.gain import channel_factors, gain_relation
from qtrace.numerics.relations.layout import presumed_layout, undo_layout, with_layout_undone
from qtrace.numerics.relations.mask import FILL, mask_relation
from qtrace.numerics.relations.search import explanation, relate

__all__ = [
    "CONVENTIONS",
    "DELIBERATE",
    "DESCRIPTIONS",
    "FILL",
    "VISIBLE",
    "channel_factors",
    "excuses",
    "explanation",
    "gain_relation",
    "into_candidate",
    "mask_relation",
    "masked_positions",
    "presumed_layout",
    "relate",
    "undo_layout",
    "where",
    "with_layout_undone",
]
