"""Something done during one call of one module, while the whole model runs around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from qtrace.engine.arguments import Bound, Signature, signature_of


class During(Protocol):
    """Told when the call begins and ends."""

    def begin(self, arguments: Bound) -> None:
        """The call is about to run on these arguments."""

    def end(self, value: Any) -> None:
        """The call has returned `value`, or raised: then it is None."""


@dataclass(slots=True)
class _Watched:
    """Counts a module's calls and finds the one in question among those that are under way."""

    index: int
    during: During
    signature: Signature
    calls: int = 0
    open: list[int] = field(default_factory=list)
    active: bool = False

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.open.append(self.calls)
        self.calls += 1
        if self.open[-1] == self.index:
            self.active = True
            self.during.begin(self.signature.bind(args, kwargs))

    def leave(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any) -> None:
        if self.open and self.open.pop() == self.index:
            self.finish(value)

    def finish(self, value: Any) -> None:
        if self.active:
            self.active = False
            self.during.end(value)


def run_during(
    module: torch.nn.Module,
    index: int,
    during: During,
    run: Callable[[], Any],
    *,
    inner: Iterable[torch.nn.Module] = (),
) -> int:
    """Run a model, have `during` told of the call number `index` of one of its modules, and return the calls counted.

    `inner` are the modules inside that may name its arguments, where it takes `*args` itself. The model runs to its
    end: cut short, it might leave state of its own behind. No hook is left in any case, and what the model raises is
    raised.
    """
    watched = _Watched(index, during, signature_of(module, inner))
    handles = [
        # First in line at the entry and last at the exit: what the module's own hooks do is a part of the call.
        module.register_forward_pre_hook(watched.enter, with_kwargs=True, prepend=True),
        module.register_forward_hook(watched.leave, with_kwargs=True, always_call=True),
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
        watched.finish(None)
    return watched.calls
