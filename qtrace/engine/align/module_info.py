"""Data classes of alignment: a module, the modules of a side, and the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from qtrace.report.records import Pairing

# Candidate path -> reference path.
Names = dict[str, str]


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module as alignment sees it: its path, its class name, and its string attributes.

    `module` is read only for its weights. `calls` is how often it was called, and `first` how many modules were called
    before it; both are None where unknown.
    """

    path: str
    type: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    module: torch.nn.Module | None = None
    calls: int | None = None
    first: int | None = None

    @property
    def runs(self) -> bool:
        """Return whether the module is called, as far as is known."""
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

    def called(self, path: str) -> list[ModuleInfo]:
        """Return the modules directly below a path that run, in the order of their first call where that is known."""
        running = [module for module in self.children(path) if module.runs]
        # The sort keeps the order of definition where no other is known.
        return sorted(running, key=lambda module: module.first or 0)


@dataclass(frozen=True, slots=True)
class Alignment:
    """The pairs, and the reference modules without a partner (`alone`).

    `pairs` maps a candidate path to its `Pairing`; a reference path may occur in several. For some modules without a
    partner it is known which module computes them, as reference path -> candidate path: in `fused` that module
    computes several in one, in `split` it is one of several that compute one together.
    `doubts` says in words which of the user's own pairs the weights contradict.
    """

    pairs: dict[str, Pairing]
    alone: tuple[str, ...]
    fused: Mapping[str, str] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    def why(self, path: str) -> str:
        """Return the reason why a reference module has no partner."""
        return "fused" if path in self.fused else "split" if path in self.split else "no_partner"
