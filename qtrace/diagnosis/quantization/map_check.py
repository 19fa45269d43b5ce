"""Holds what a module that stores codes was asked against what it computes on the values that it really receives.

A module is asked with unit vectors and random rows which weight it computes with. What it does with other values, with
a batch or with a long sequence does not show there: then it is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median_high
from typing import Any

import torch
from torch import Tensor, nn

from qtrace.engine.events import Bound, Call
from qtrace.tree import tensors

# A relative L2 error above this is no rounding of a module's inputs, unless they have so few bits that all are coarse.
_SAME = 0.03
_COARSE = 2.0
_MOST = 0.25


class MapCheck:
    """A listener to the candidate that measures how far modules are from the `maps` that they were asked for."""

    def __init__(self, maps: list[tuple[nn.Module, Callable[..., Tensor]]]) -> None:
        self._maps = {id(module): forward for module, forward in maps}
        self._given: list[tuple[Call, Tensor | None]] = []
        self._off: dict[int, float] = {}

    def enter(self, call: Call, module: nn.Module, arguments: Bound) -> None:
        """Note what a module receives."""
        is_asked = id(module) in self._maps
        given = (leaf for _, leaf in tensors(arguments.values) if leaf.is_floating_point())
        self._given.append((call, next(given, None) if is_asked else None))

    def leave(self, call: Call, module: nn.Module, value: Any) -> None:
        """Hold what it returns against its map."""
        given = None
        while self._given:
            entered, given = self._given.pop()
            if entered is call:
                break
        if given is None or not isinstance(value, Tensor):
            return
        with torch.no_grad():
            expected = self._maps[id(module)](given)
        off = float("inf")
        if expected.shape == value.shape:
            size = expected.double().norm().clamp(min=1e-30)
            off = float((value.double() - expected.double()).norm() / size)
        self._off[id(module)] = max(off, self._off.get(id(module), 0.0))

    def others(self) -> set[int]:
        """Return the modules, by id, that compute something else than their map, and more so than the others."""
        usual = median_high(self._off.values()) if self._off else 0.0
        return {module for module, off in self._off.items() if not off <= max(_SAME, min(_COARSE * usual, _MOST))}
