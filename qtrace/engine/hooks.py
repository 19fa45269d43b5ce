"""Registers all of qtrace's hooks, in the right place among a module's own; observes one call of one module."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from qtrace.engine.events import Bound, Signature, signature_of
from qtrace.tree import tensors

Enter = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], Any]
Leave = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
# A tensor among the leaves of a value: its path, a reference to it, and how often it was written.
_Mark = tuple[str, weakref.ref[torch.Tensor], int]


class Hooks:
    """The hooks of one run of one model.

    `rewriting` says by path whether a module's own hooks change the output of its forward. It is learned where it is
    not known, and should be kept for the next run.
    """

    def __init__(self, rewriting: dict[str, bool]) -> None:
        self._rewriting = rewriting
        self._handles: list[Any] = []
        self._forwarded: dict[torch.nn.Module, list[_Mark]] = {}

    def add(self, path: str, module: torch.nn.Module, enter: Enter, leave: Leave) -> None:
        """Register `enter` and `leave` around each call of a module; where it raises, `leave` is called with None.

        Raises RuntimeError where the module accepts no hooks, such as a scripted one.
        """
        # Hooks that are added while the model runs are not known to change anything.
        is_known = path in self._rewriting or not module._forward_hooks
        is_first = is_known and not self._rewriting.setdefault(path, False)
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        after = module.register_forward_hook(leave, with_kwargs=True, always_call=True, prepend=is_first)
        self._handles.append(after)
        if not is_known:
            self._handles.append(module.register_forward_hook(self._note, prepend=True))

    def learn(self, path: str, module: torch.nn.Module, value: Any) -> None:
        """Learn from the output that a module's caller gets; `leave` calls this, except where the module raised."""
        forwarded = self._forwarded.pop(module, None)
        if forwarded is not None:
            self._rewriting[path] = self._rewriting.get(path, False) or not _is_same(forwarded, value)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, module: torch.nn.Module, args: tuple[Any, ...], value: Any) -> None:
        self._forwarded[module] = [(path, weakref.ref(leaf), _writes(leaf)) for path, leaf in tensors(value)]


def _is_same(marks: list[_Mark], value: Any) -> bool:
    """Return whether a value holds the marked tensors in their places, and none of them was written since."""
    found = tensors(value)
    # By reference, since an id may be reused once its tensor is gone.
    return len(found) == len(marks) and all(
        name == path and ref() is leaf and writes == _writes(leaf)
        for (name, ref, writes), (path, leaf) in zip(marks, found, strict=True)
    )


def _writes(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class CallProbe(Protocol):
    """Receives the beginning and the end of the call."""

    def begin(self, arguments: Bound) -> None:
        """The call is about to run on these arguments."""

    def end(self, value: Any) -> None:
        """The call has returned `value`, or raised; then `value` is None."""


@dataclass(slots=True)
class _ProbedCall:
    """Counts a module's calls and finds call number `index` among those that are under way."""

    index: int
    during: CallProbe
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


def run_with_probe(
    module: torch.nn.Module,
    index: int,
    during: CallProbe,
    run: Callable[[], Any],
    *,
    inner: Iterable[torch.nn.Module] = (),
) -> int:
    """Run a model, pass call number `index` of one of its modules to `during`, and return the number of calls.

    `inner` are the modules inside whose forwards may name the arguments, where the module itself takes `*args`. The
    model runs to its end: a run cut short might leave state behind. No hook is left in any case, and an exception of
    the model is raised.
    """
    watched = _ProbedCall(index, during, signature_of(module, inner))
    handles = [
        # First at the entry and last at the exit: the work of the module's own hooks is a part of the call.
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
