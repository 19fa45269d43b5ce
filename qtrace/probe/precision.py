"""In which precision modules compute inside: a float32 module may well reduce its variance in bfloat16."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qtrace.probe.arguments import Bound
from qtrace.probe.events import Call


class Precision:
    """A listener that notes the coarsest floating dtype that the operators of chosen modules return.

    `coarsest` holds it by path, in the side's own names; only calls of these `paths` are looked into.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self.coarsest: dict[str, torch.dtype] = {}
        self._paths = paths
        self._open: list[tuple[Call, _Dtypes]] = []

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Begin to note the dtypes of a chosen call."""
        if call.path in self._paths and not self._open:
            mode = _Dtypes()
            mode.__enter__()  # type: ignore[no-untyped-call]
            self._open.append((call, mode))

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """End with the call that was begun."""
        if not self._open or self._open[-1][0] is not call:
            return
        mode = self._open.pop()[1]
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        seen = mode.dtypes | ({self.coarsest[call.path]} if call.path in self.coarsest else set())
        if seen:
            self.coarsest[call.path] = max(seen, key=lambda dtype: torch.finfo(dtype).eps)


class _Dtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                self.dtypes.add(one.dtype)
        return value
