"""Loads the model that a SPEC names. A new scheme is a loader of its own and one line in `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from qtrace.documents import find_path, missing
from qtrace.engine.placement import deep_copy, place_model
from qtrace.errors import SourceError, UsageError
from qtrace.sources import hub
from qtrace.sources.callables import call, find_object, is_required, required, takes
from qtrace.sources.spec import LoadOptions, Spec, check_options, parse_spec
from qtrace.toolkits.export import unflattened
from qtrace.traces import Trace, skeleton, trace_of

_SCHEME = "trace:"


def is_trace(source: str | None) -> bool:
    """Return whether a SPEC names a stored trace."""
    return source is not None and source.startswith(_SCHEME)


def made_from_trace(what: str, source: str) -> UsageError:
    """Return the error for a candidate that is made from a stored reference, which has no weights."""
    return UsageError(
        f"{what} makes the candidate from the reference, and {source} is a trace, which has no weights and no code; "
        "give the model itself as --reference, or capture the candidate (--side candidate) and compare by qtrace diff"
    )


def open_trace(spec: Spec, options: LoadOptions) -> Trace:
    """Open the trace that `trace:FOLDER` names; raises `SourceError` where there is no trace, or it is damaged."""
    check_options(spec, ())
    place = find_path(spec.body, options.folder)
    if place is None:
        raise SourceError(missing("trace", spec.body, options.folder))
    return Trace(place)


def load_skeleton(spec: Spec, options: LoadOptions) -> nn.Module:
    """Return the modules of a trace, as a model that can be compared but not run."""
    return skeleton(open_trace(spec, options))


SCHEMES: dict[str, Callable[[Spec, LoadOptions], nn.Module]] = {
    "hf": hub.load_pretrained,
    "config": hub.make_random,
    "trace": load_skeleton,
}


def load_model(
    text: str,
    *,
    args: Mapping[str, Any] | None = None,
    reference: nn.Module | None = None,
    options: LoadOptions | None = None,
) -> nn.Module:
    """Return the model that a source names, on the device and in the dtype of the options.

    With `reference` given, a candidate is loaded: a callable with a parameter `reference` receives a deep copy of it to
    wrap, and its result is not cast to another dtype. A model that transformers makes here is in eval mode; a model
    that a callable returns keeps its mode. A stored trace is a tree of modules that cannot run.

    Raises:
        UsageError: an unknown form of a source, unknown options, `args` that do not fit.
        SourceError: the model could not be loaded; see `find_object`, `call` and the loaders in `SCHEMES`.
    """
    options = options or LoadOptions()
    spec = parse_spec(text, SCHEMES)
    if spec.scheme:
        if args:
            raise UsageError(f"{text}: args go to a callable; write them into the source, after a ?")
        return SCHEMES[spec.scheme](spec, options)
    return _load_callable(text, dict(args or {}), reference, options)


def _load_callable(text: str, args: dict[str, Any], reference: nn.Module | None, options: LoadOptions) -> nn.Module:
    made = find_object(text, options.folder)
    wraps = False
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise SourceError(
                f"{text} is of type {type(made).__name__}; expected a callable that returns a torch.nn.Module"
            )
        if reference is None and is_required(made, "reference") and "reference" not in args:
            raise UsageError(f"{text} takes the parameter reference, so it makes a candidate; give it as --candidate")
        wraps = reference is not None and takes(made, "reference")
        if reference is not None and not wraps and (one := _only_required(made, args)):
            raise UsageError(
                f"{text} needs the parameter {one}; if that is the model to wrap, call it reference, "
                "else give it under args in the config"
            )
        if wraps and reference is not None and (stored := trace_of(reference)) is not None:
            raise made_from_trace(text, stored.name)
        offered = {"reference": deep_copy(reference)} if reference is not None and wraps else {}
        made = call(made, text, args, offered)
    made = unflattened(made)
    if not isinstance(made, nn.Module):
        kind = "None" if made is None else f"a value of type {type(made).__name__}"
        raise SourceError(f"{text} returned {kind}; expected a torch.nn.Module")
    if _is_empty(made):
        raise SourceError(f"{text} returned a model on the meta device, which has no values; give it weights first")
    # A wrapper received a cast reference; casting its result would round its scales and override its own choices.
    return place_model(made, options.device, None if wraps else options.dtype)


def _is_empty(model: nn.Module) -> bool:
    """Return whether all parameters are on the meta device, and no hook loads their values for each call."""
    is_offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    parameters = list(model.parameters())
    return bool(parameters) and not is_offloaded and all(parameter.is_meta for parameter in parameters)


def _only_required(made: Callable[..., Any], args: Mapping[str, Any]) -> str | None:
    """Return the only missing parameter, where exactly one is missing."""
    absent = [name for name in required(made) if name not in args]
    return absent[0] if len(absent) == 1 else None
