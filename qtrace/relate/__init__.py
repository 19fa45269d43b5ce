"""How a candidate's tensor is related to the reference's; every relation is verified by value, never guessed."""

from qtrace.relate.channels import channel_factors
from qtrace.relate.convention import into_candidate
from qtrace.relate.extent import where
from qtrace.relate.gain import VISIBLE, gain_relation
from qtrace.relate.layout import undo_layout
from qtrace.relate.mask import FILL, mask_relation
from qtrace.relate.search import relate

__all__ = [
    "FILL",
    "VISIBLE",
    "channel_factors",
    "gain_relation",
    "into_candidate",
    "mask_relation",
    "relate",
    "undo_layout",
    "where",
]
