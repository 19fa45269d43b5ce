"""A module of a candidate that tico has wrapped."""

from __future__ import annotations

from typing import Any

from bench.faults.case import Pair


def unwrapped(pair: Pair, path: str) -> Any:
    """Return tico's module for a path of the reference, such as model.visual.merger, without its PTQWrapper."""
    module = pair.candidate
    for name in path.split("."):
        module = getattr(module, "wrapped", module)
        module = getattr(module, name) if not name.isdigit() else module[int(name)]
    return getattr(module, "wrapped", module)
