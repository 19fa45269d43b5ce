"""Finds wrappers by name: `wrap(reference, samples, **args) -> nn.Module` makes the candidate from the reference.

Each built-in wrapper is a file in `qtrace.toolkits`; other packages register theirs in the entry-point group
`qtrace.wrappers`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from textwrap import shorten
from typing import Any

from torch import nn

from qtrace.engine.placement import deep_copy
from qtrace.engine.samples import Sample
from qtrace.errors import QtraceError, SourceError, UsageError, did_you_mean
from qtrace.sources.callables import describe
from qtrace.toolkits import TOOLKITS
from qtrace.toolkits.export import unflattened

GROUP = "qtrace.wrappers"
# The permitted types of an annotation, and their description. A whole number is a number, true and false are not.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "Sequence[str]": ((list, tuple), "a list, as in [a, b]"),
    "Sequence[Sequence[str]]": ((list, tuple), "a list of lists, as in [[a, b]]"),
}
# A toolkit's message about a refused model may fill a page.
_LONGEST = 300
Wrapper = Callable[..., nn.Module]


def known_wrappers() -> list[str]:
    """Return the names of all installed wrappers."""
    return sorted({*TOOLKITS, *_announced()})


def load_wrapper(name: str, args: Mapping[str, Any]) -> Wrapper:
    """Return the wrapper with this name, after checking that it takes the arguments.

    Raises:
        UsageError: no such wrapper (similar names and all names are given), or arguments that it does not take.
        SourceError: another package registers it and it cannot be imported.
    """
    wrapper = _find(name)
    _check_args(name, wrapper, args)
    return wrapper


def _find(name: str) -> Wrapper:
    if name in TOOLKITS:
        # Imported by name, so that a source checkout without installed metadata has them too.
        built_in: Wrapper = import_module(f"qtrace.toolkits.{name}").wrap
        return built_in
    announced = _announced()
    if name not in announced:
        known = known_wrappers()
        near = did_you_mean(name, known)
        every = "" if near.startswith("known") else f" (known: {', '.join(known)})"
        raise UsageError(f"there is no wrapper {name}; {near}{every}")
    try:
        loaded: Wrapper = announced[name].load()
    except (Exception, SystemExit) as error:  # any error of importing another package
        raise SourceError(
            f"the wrapper {name} ({announced[name].value}) cannot be imported: {describe(error)}"
        ) from error
    return loaded


def apply_wrapper(name: str, reference: nn.Module, samples: Sequence[Sample], args: Mapping[str, Any]) -> nn.Module:
    """Return the candidate that a wrapper makes of a deep copy of the reference.

    Raises:
        UsageError: no such wrapper, or arguments that it does not take.
        SourceError: the reference cannot be copied, the toolkit is missing, or the wrapper failed.
    """
    wrapper = load_wrapper(name, args)
    copied = deep_copy(reference)
    try:
        wrapped = wrapper(copied, samples, **args)
    except QtraceError:
        raise
    except (Exception, SystemExit) as error:  # a toolkit's own types
        said = shorten(describe(error), _LONGEST, placeholder=" …")
        raise SourceError(f"the wrapper {name} failed on {type(reference).__name__}: {said}") from error
    wrapped = unflattened(wrapped)
    if not isinstance(wrapped, nn.Module):
        raise SourceError(
            f"the wrapper {name} returned a value of type {type(wrapped).__name__}; expected a torch.nn.Module"
        )
    return wrapped


def _announced() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in TOOLKITS}


def _check_args(name: str, wrapper: Wrapper, args: Mapping[str, Any]) -> None:
    """Refuse arguments that the wrapper's signature lacks; its first two are reference and samples."""
    parameters = list(inspect.signature(wrapper).parameters.values())[2:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = {parameter.name: parameter for parameter in parameters}
    for arg in args:
        if arg not in known:
            near = did_you_mean(arg, known)
            every = "" if near.startswith(("known", "none")) else f" (known: {', '.join(known)})"
            raise UsageError(f"the wrapper {name} takes no argument {arg}; {near}{every}")
        _check_kind(name, known[arg], args[arg])
    for parameter in known.values():
        if parameter.default is inspect.Parameter.empty and parameter.name not in args:
            raise UsageError(f"the wrapper {name} needs {parameter.name}; give --wrap-arg {parameter.name}=VALUE")


def _check_kind(name: str, parameter: inspect.Parameter, value: Any) -> None:
    """Refuse a value of another type than the parameter's annotation; most annotations are not checked."""
    annotation = parameter.annotation
    said = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    kinds, words = _KINDS.get(said, ((), ""))
    is_flag = isinstance(value, bool) and bool not in kinds
    if kinds and (is_flag or not isinstance(value, kinds)):
        raise UsageError(f"the wrapper {name} takes for {parameter.name} {words}, and was given {value!r}")
