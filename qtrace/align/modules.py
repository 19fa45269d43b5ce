"""What alignment knows of a module and of a whole side, and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from qtrace.records import Pairing

# Candidate path -> reference path.
Names = dict[str, str]


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module as alignment sees it: its path, its class name, and its string attributes.

    `module` is read for its weights alone; `calls` is how often it was called, None where that is not known.
    """

    path: str
    type: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    module: torch.nn.Module | None = None
    calls: int | None = None

    @property
    def runs(self) -> bool:
        """Return whether it is called, as far as is known."""
        return self.calls != 0


class Tree:
    """One side's modules by path, in the order in which they are defined."""

    def __init__(self, modules: Iterable[ModuleInfo]) -> None:
        self.modules = {module.path: module for module in modules}
        self.below = {path for path in self.modules if path}
        self.vocabulary = {part for path in self.below for part in path.split(".")}
        self._children: dict[str, list[ModuleInfo]] = {}
        for path in self.modules:
            if path:
                self._children.setdefault(path.rpartition(".")[0], []).append(self.modules[path])

    def __contains__(self, path: object) -> bool:
        return path in self.modules

    def __getitem__(self, path: str) -> ModuleInfo:
        return self.modules[path]

    def children(self, path: str) -> list[ModuleInfo]:
        """Return the modules directly below a path."""
        return self._children.get(path, [])


@dataclass(frozen=True, slots=True)
class Alignment:
    """The pairs, and the reference modules that no candidate module answers to.

    `pairs` maps a candidate path to its `Pairing`; a reference path may occur in several. `fused` says of some of those
    alone what computes them: reference path -> candidate path.
    """

    pairs: dict[str, Pairing]
    alone: tuple[str, ...]
    fused: Mapping[str, str] = field(default_factory=dict)
