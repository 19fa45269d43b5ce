"""Traces on disk: the calls of one model, stored for a comparison at another time or on another machine.

`capture` writes a trace. `compare` compares two traces, or a trace with a live model. This package exports only the
format.
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
