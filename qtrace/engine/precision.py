"""In which precision modules compute inside: a float32 module may well reduce its variance in bfloat16."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qtrace.engine.events import Bound, Call


class Precision:
    """A listener that notes which floating dtypes the operators of chosen modules return.

    `dtypes` holds them by path, in the side's own names. Only calls of these `paths` are looked into, one at a time.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self.dtypes: dict[str, set[torch.dtype]] = {}
        self._paths = paths
        self._call: Call | None = None
        self._mode: _Dtypes | None = None

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Begin to note the dtypes of a chosen call."""
        if call.path in self._paths and self._mode is None:
            self._call, self._mode = call, _Dtypes(self.dtypes.setdefault(call.path, set()))
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """End with the call that was begun."""
        if self._mode is not None and self._call is call:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._call = self._mode = None


class _Dtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: set[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                self._seen.add(one.dtype)
        return value
