"""The inputs that a trace was captured on, as what a model is called with."""

from __future__ import annotations

from typing import Any

from qtrace.engine.samples import Sample
from qtrace.errors import UsageError
from qtrace.traces.manifest import StoredCall
from qtrace.traces.reader import Trace, Values


def samples_of(trace: Trace) -> list[Sample]:
    """Return what the model was called with, sample by sample.

    Raises `UsageError` where that is not stored as it was: without arguments, as a sketch, cast, or as an object, which
    is stored by its tensors alone.
    """
    found = []
    manifest = trace.manifest
    why = ""
    if manifest.call != "forward":
        # What its forward is handed there is not what the method was called with.
        why = f"its model was called by {manifest.call}, whose own arguments are not stored"
    elif not manifest.arguments or manifest.sketches or manifest.cast is not None:
        why = "it holds none (--outputs-only), or not in full (--stats-only, --as)"
    for sample in manifest.samples:
        root = next((call for call in sample.calls if call.module == ""), None)
        if root is None:
            why = why or "it holds no call of the model itself"
        elif not why and not set(root.positional) <= set(root.passed) <= set(root.arguments):
            why = "not all of them are stored"
        elif not why and any(leaf.path for name in root.passed for leaf in root.arguments[name].leaves):
            why = "they are nested"
        if why or root is None:
            raise UsageError(f"{trace.name}: the inputs cannot be taken from the trace: {why}; give --inputs")
        found.append(_sample(root, Values(trace, sample)))
    return found


def _sample(root: StoredCall, values: Values) -> Sample:
    given: dict[str, Any] = {name: values.value(root.arguments[name]) for name in root.passed}
    args = tuple(given.pop(name) for name in root.positional)
    return Sample(args, given)
