"""Drives two sides through the same inputs and compares them wherever both stand still."""

from qtrace.lockstep.around import Around, Attendant, EndRun
from qtrace.lockstep.comparison import Comparison
from qtrace.lockstep.driver import CANDIDATE, REFERENCE, Lockstep, Meeting, Side
from qtrace.lockstep.pair import Pair, PairComparer

__all__ = [
    "CANDIDATE",
    "REFERENCE",
    "Around",
    "Attendant",
    "Comparison",
    "EndRun",
    "Lockstep",
    "Meeting",
    "Pair",
    "PairComparer",
    "Side",
]
