"""Stops both models at the same call and opens a prompt for either: Python's pdb with two sides."""

from qtrace.debug.breakpoints import StopRequest, culprit, sample_of, stop_request, stop_request_from_python
from qtrace.debug.debugger import Debugger
from qtrace.debug.pdb_prompt import is_off, is_wanted
from qtrace.debug.stop import Script

__all__ = [
    "Debugger",
    "Script",
    "StopRequest",
    "culprit",
    "is_off",
    "is_wanted",
    "sample_of",
    "stop_request",
    "stop_request_from_python",
]
