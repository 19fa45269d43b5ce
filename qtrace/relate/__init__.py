"""How a candidate's tensor is related to the reference's; every relation is verified by value, never guessed."""

from qtrace.relate.channels import channel_factors
from qtrace.relate.convention import into_candidate
from qtrace.relate.extent import where
from qtrace.relate.gain import VISIBLE, gain_relation
from qtrace.relate.kinds import CONVENTIONS, DELIBERATE, DESCRIPTIONS, excuses
from qtrace.relate.layout import undo_layout, with_layout_undone
from qtrace.relate.mask import FILL, mask_relation
from qtrace.relate.search import explanation, relate

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
    "relate",
    "undo_layout",
    "where",
    "with_layout_undone",
]
