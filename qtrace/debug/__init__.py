"""Stops both models at the same call, and looks at either from there: Python's pdb with two sides."""

from qtrace.debug.culprit import culprit, sample_of
from qtrace.debug.debugger import Debugger
from qtrace.debug.foreign import is_off, is_wanted
from qtrace.debug.script import Script
from qtrace.debug.wanted import Wanted, wanted, wanted_in_python

__all__ = [
    "Debugger",
    "Script",
    "Wanted",
    "culprit",
    "is_off",
    "is_wanted",
    "sample_of",
    "wanted",
    "wanted_in_python",
]
