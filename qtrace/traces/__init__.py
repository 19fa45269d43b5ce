"""Traces on disk: what one model did, call by call, to be compared at another time, or on another machine.

`capture` writes one and `compare` compares two, or one with a live model; what is exported here is the format alone.
"""

from qtrace.traces.manifest import SCHEMA, Manifest
from qtrace.traces.reader import Trace
from qtrace.traces.skeleton import Skeleton, skeleton, trace_of
from qtrace.traces.stored_side import StoredSide
from qtrace.traces.writer import Form, TraceWriter

__all__ = [
    "SCHEMA",
    "Form",
    "Manifest",
    "Skeleton",
    "StoredSide",
    "Trace",
    "TraceWriter",
    "skeleton",
    "trace_of",
]
