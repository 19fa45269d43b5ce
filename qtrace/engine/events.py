"""Defines the events of a side (a call was entered, a call was left, the run ended); binds arguments to names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch


@dataclass(slots=True)
class Bound:
    """The arguments of one call: values by name, and the names in positional order.

    A positional argument without a name is called "*0", "*1", …; a parameter that was not passed has its default.
    `passed` holds the names that the caller gave.
    """

    values: dict[str, Any]
    positional: tuple[str, ...]
    passed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Signature:
    """The named parameters of a forward: positional ones in order, and the defaults of all."""

    positional: tuple[str, ...]
    defaults: Mapping[str, Any]
    named: bool

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bound:
        """Return the arguments by name; never raises, since the model itself reports a call that does not fit."""
        count = len(args)
        names = self.positional[:count]
        if count > len(names):
            names = (*names, *[f"*{i}" for i in range(len(names), count)])
        values = dict(zip(names, args, strict=True))
        values.update(kwargs)
        passed = frozenset(values)
        for name, default in self.defaults.items():
            if name not in values:
                values[name] = default
        return Bound(values, names, passed)


_NO_NAMES = Signature((), {}, False)


def signature_of(module: torch.nn.Module, inner: Iterable[torch.nn.Module] = ()) -> Signature:
    """Return the first signature with named parameters among the module's forward and those of the modules inside."""
    for candidate in (module, *inner):
        forward = candidate.forward
        found = _signature(getattr(forward, "__func__", forward), inspect.ismethod(forward))
        if found.named:
            return found
    return _NO_NAMES


@lru_cache(maxsize=4096)
def _signature(function: Callable[..., Any], is_method: bool) -> Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return _NO_NAMES
    if is_method and parameters:
        parameters = parameters[1:]
    positional = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    defaults = {p.name: p.default for p in named if p.default is not p.empty}
    return Signature(positional, defaults, bool(named))


@dataclass(slots=True, eq=False)
class Call:
    """One call of one module of one side.

    `path` is in the side's own names, and `key` is the reference path that it is aligned with (None without a
    partner). `index` counts the module's calls from 0; `caller` is the module whose code made the call. `entry` and
    `order` count the calls that the side had left when this one was entered and left: execution order, with arguments
    before the output. A `fresh` call returns a tensor that no other code holds. The module of a call that `has_data`
    has parameters or buffers of its own.
    """

    path: str
    key: str | None
    type: str
    index: int
    caller: str
    entry: int = 0
    order: int = 0
    fresh: bool = False
    has_data: bool = False


@dataclass(slots=True)
class Enter:
    """A call is about to run; `arguments` holds its arguments by name, `args` and `kwargs` as they were passed."""

    call: Call
    arguments: Bound
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exit:
    """A call has run; `value` is its output. `error` is set where it raised and the model goes on."""

    call: Call
    value: Any
    error: BaseException | None = None


@dataclass(slots=True)
class End:
    """The model has run; `error` is the exception that it raised, `module` the innermost module running then."""

    value: Any = None
    error: BaseException | None = None
    module: str = ""


@dataclass(slots=True)
class Pause:
    """The side was stopped between two events, by a debugger that steps through its code."""


@dataclass(slots=True)
class Replacement:
    """The value that replaces a side's own: (args, kwargs) at an entry, the returned value at an exit."""

    value: Any


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a side's code: the file, the line, and the function around it."""

    file: str
    line: int
    function: str


Event = Enter | Exit | End
