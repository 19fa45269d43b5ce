"""Finds the tensors of the modules inside a container that the container's own code reads itself.

Such code sees the tensors as they are stored: codes, scales and their layout, not what the module makes of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qtrace.diagnosis.runner import Runner
from qtrace.engine.events import Bound, Call
from qtrace.tree import leaves


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which of some tensors the code of one module reads, while it is the innermost one that runs."""

    def __init__(self, path: str, tensors: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}
        self._path = path
        self._tensors = tensors
        self._calls: list[Call] = []

    def enter(self, call: Call, module: nn.Module, arguments: Bound) -> None:
        """Note which module runs."""
        self._calls.append(call)

    def leave(self, call: Call, module: nn.Module, value: Any) -> None:
        """Note that a module has run; those inside that raised have as well."""
        while self._calls and self._calls.pop() is not call:
            pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._calls and self._calls[-1].path == self._path:
            for _, value in leaves(args):
                if isinstance(value, Tensor) and (name := self._tensors.get(_place(value))) is not None:
                    self.found[name] = None
        return func(*args, **(kwargs or {}))


def _place(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def borrowed(runner: Runner, module: str) -> list[str]:
    """Return the tensors, by name below the container, that the candidate's code of a container reads itself.

    Args:
        runner: both models run once.
        module: the reference's path of the container.
    """
    reference, candidate = runner.models
    path = next(reversed(runner.answering(module)), None)
    if path is None:
        return []
    prefix = f"{path}." if path else ""
    tensors = {
        _place(tensor): f"{name}.{key}"
        for name, one in candidate.modules[path].named_modules()
        if name and f"{prefix}{name}" in candidate.modules
        for key, tensor in (*one._parameters.items(), *one._buffers.items())
        if tensor is not None and tensor.numel() > 1
    }
    tensors.pop(0, None)
    reads = _Reads(path, tensors)

    @contextlib.contextmanager
    def within() -> Iterator[None]:
        with candidate.within(), reads:
            yield

    runner.of((reference, replace(candidate, within=within))).pass_without_forcing((None, reads))
    return list(reads.found)
