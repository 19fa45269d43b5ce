"""Stored traces as sources: of a model, which cannot run then, and of inputs."""

from __future__ import annotations

from torch import nn

from qtrace.errors import SourceError
from qtrace.sources.files import find_path, missing
from qtrace.sources.spec import LoadOptions, Spec, check_options
from qtrace.store import Trace, skeleton


def open_trace(spec: Spec, options: LoadOptions) -> Trace:
    """Open the trace that `trace:FOLDER` names; raises `SourceError` where there is none, or it is damaged."""
    check_options(spec, ())
    place = find_path(spec.body, options.folder)
    if place is None:
        raise SourceError(missing("trace", spec.body, options.folder))
    return Trace(place)


def load_skeleton(spec: Spec, options: LoadOptions) -> nn.Module:
    """Return the modules of a trace, as a model that can be compared but not run."""
    return skeleton(open_trace(spec, options))
