"""How a candidate's tensor is related to the reference's; every relation is verified by value, never guessed."""

from qtrace.relate.gain import VISIBLE, gain_relation
from qtrace.relate.layout import undo_layout
from qtrace.relate.mask import mask_relation

__all__ = ["VISIBLE", "gain_relation", "mask_relation", "undo_layout"]
