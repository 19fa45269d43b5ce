"""Stored traces as sources: of a model, which cannot run then, and of inputs."""

from __future__ import annotations

from torch import nn

from qtrace.errors import SourceError, UsageError
from qtrace.files import find_path, missing
from qtrace.sources.spec import LoadOptions, Spec, check_options
from qtrace.traces import Trace, skeleton

_SCHEME = "trace:"


def is_trace(source: str | None) -> bool:
    """Return whether a SPEC names a stored trace."""
    return source is not None and source.startswith(_SCHEME)


def made_from_trace(what: str, source: str) -> UsageError:
    """Return the error for a candidate that is made from the reference where that is stored and has no weights."""
    return UsageError(
        f"{what} makes the candidate from the reference, and {source} is a trace, which has no weights and no code; "
        "give the model itself as --reference, or capture the candidate (--side candidate) and compare by qtrace diff"
    )


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
