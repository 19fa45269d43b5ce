"""Numbers that lie: the children of a container were counted anew, as when one was folded away or put in between."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qtrace.engine.align.module_info import ModuleInfo, Tree
from qtrace.engine.align.weights import ALIKE, likeness, weight_of


def renumbered(reference: Tree, candidate: Tree, names: Mapping[str, str]) -> set[str]:
    """Return the candidate paths whose name tells nothing, since a number in it counts otherwise than the reference.

    That is so in a container with more or fewer numbered children than its partner has, where two of one number
    contradict each other: other weights, a weight and none, another class of torch's own.
    """
    lying = {path for path, name in names.items() if _lies(reference, candidate, path, name)}
    return {path for path in names if _is_counted_in(path, lying)}


def _lies(reference: Tree, candidate: Tree, path: str, name: str) -> bool:
    mine, theirs = _numbered(reference.children(name)), _numbered(candidate.children(path))
    if not mine or not theirs or len(mine) == len(theirs):
        return False
    return any(_contradict(mine[number], theirs[number]) for number in mine.keys() & theirs.keys())


def _numbered(children: list[ModuleInfo]) -> dict[str, ModuleInfo]:
    numbers = {child.path.rpartition(".")[2]: child for child in children}
    return {number: child for number, child in numbers.items() if number.isdigit()}


def _is_counted_in(path: str, containers: set[str]) -> bool:
    """Return whether a number that one of the containers gives is part of the path."""
    while path:
        path, _, last = path.rpartition(".")
        if last.isdigit() and path in containers:
            return True
    return False


def _contradict(reference: ModuleInfo, candidate: ModuleInfo) -> bool:
    mine, theirs = reference.module, candidate.module
    if mine is None or theirs is None:
        return False
    inside = dict(theirs.named_modules())
    for path, module in mine.named_modules():
        alike = likeness(module, inside.get(path))
        if alike is not None:
            return alike < ALIKE
    if candidate.type == "Identity":
        # A norm or a dropout may have been taken out; a layer cannot.
        weight = weight_of(mine)
        return any(True for _ in mine.children()) or (weight is not None and len(weight) > 1)
    if reference.type.lower() in candidate.type.lower():
        # A `QuantReLU` holds scales where a `ReLU` holds nothing.
        return False
    if _has_values(mine) != _has_values(theirs):
        return True
    return reference.type != candidate.type and _is_plain(mine) and _is_plain(theirs)


def _has_values(module: torch.nn.Module) -> bool:
    """Return whether a module holds numbers of any kind; packed ones are behind a method of the name `weight`."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return True
    return any(callable(getattr(one, "weight", None)) for one in module.modules())


def _is_plain(module: torch.nn.Module) -> bool:
    """Return whether a module is a leaf of torch's own that holds no numbers, such as an activation."""
    own = type(module).__module__.startswith("torch.nn.modules")
    return own and not _has_values(module) and not any(True for _ in module.children())
