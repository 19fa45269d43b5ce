"""What a command hears of the models while they run: how often each module is called, the final output."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from qtrace.engine.arguments import Bound
from qtrace.engine.events import Call
from qtrace.numerics import plain
from qtrace.tree import leaves

POINTS = 2000


class CallCounter:
    """Counts the calls of each module of one side, by the side's own paths; `keys` says who they answered to."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.keys: dict[str, str] = {}

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Count the call."""
        self.calls[call.path] += 1
        if call.key is not None:
            self.keys[call.path] = call.key

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Nothing more to note."""


class FinalOutput:
    """Keeps at most `POINTS` evenly spaced elements of the first floating tensor that the root returns."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self.numel = 0

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Nothing to note yet."""

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Sample the root's output; the last call counts where there are several."""
        if call.path:
            return
        for _, leaf in leaves(value):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                flat = plain(leaf).flatten()
                self.numel = flat.numel()
                self.points = flat[:: max(1, -(-self.numel // POINTS))].to("cpu", torch.float64).tolist()
                return


class Everyone:
    """Several listeners as one."""

    def __init__(self, *listeners: Any) -> None:
        self._listeners = listeners

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.enter(call, module, arguments)

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.leave(call, module, value)
