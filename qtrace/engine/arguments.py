"""A call's arguments under the names of forward's parameters.

Wrappers that take `*args, **kwargs` have no names to offer; then those of the first module inside that has some
count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
