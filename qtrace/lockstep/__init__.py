"""Drives two sides through the same inputs and compares them wherever both stand still."""

from qtrace.lockstep.comparison import Comparison
from qtrace.lockstep.driver import CANDIDATE, REFERENCE, Lockstep, Side
from qtrace.lockstep.pair import Pair, PairComparer

__all__ = ["CANDIDATE", "REFERENCE", "Comparison", "Lockstep", "Pair", "PairComparer", "Side"]
