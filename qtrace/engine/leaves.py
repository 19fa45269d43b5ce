"""Which leaf of one side stands against which leaf of the other: in outputs by path, in arguments by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qtrace.engine.arguments import Bound
from qtrace.tree import Leaf, join, leaves, tensors


class Missing:
    """Stands for a leaf that one side does not have."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()
LeafPair = tuple[str, Any, Any]


def match_leaves(reference: list[Leaf], candidate: list[Leaf]) -> list[LeafPair]:
    """Pair two lists of leaves: by path first; the tensors left over by order, where their shapes agree.

    The order rule lets a `ModelOutput` stand against a plain tuple. What still has no partner is paired with
    `MISSING`; a None without partner is nothing.
    """
    if len(reference) == 1 and len(candidate) == 1:
        return [(reference[0][0], reference[0][1], candidate[0][1])]
    if [path for path, _ in reference] == [path for path, _ in candidate]:
        pairs = [(path, mine, theirs) for (path, mine), (_, theirs) in zip(reference, candidate, strict=True)]
        return [pair for pair in pairs if not (pair[1] is None and pair[2] is None)]
    theirs = dict(candidate)
    pairs = [(path, leaf, theirs.pop(path, MISSING)) for path, leaf in reference]
    for position, (path, leaf, partner) in enumerate(pairs):
        if partner is MISSING and isinstance(leaf, torch.Tensor):
            for name, other in theirs.items():
                if isinstance(other, torch.Tensor) and other.shape == leaf.shape:
                    pairs[position] = (path, leaf, theirs.pop(name))
                    break
    pairs.extend((path, MISSING, leaf) for path, leaf in theirs.items())
    return [pair for pair in pairs if not _is_nothing(pair)]


def match_arguments(reference: Bound, candidate: Bound) -> Iterator[tuple[str, Any, Any]]:
    """Yield the pairs of argument values of one call, under the reference's parameter names.

    Names that both know pair first; then positional arguments by position, since wrappers rename them
    (`Linear.input` stands against `QuantLinear.x`). What only one side knows stands against `MISSING`, and counts
    where it holds a tensor.
    """
    if reference.values.keys() == candidate.values.keys():
        for name, value in reference.values.items():
            yield name, value, candidate.values[name]
        return
    theirs = dict(candidate.values)
    open_names = []
    for name, value in reference.values.items():
        if name in theirs:
            yield name, value, theirs.pop(name)
        else:
            open_names.append(name)
    for name in open_names:
        value = reference.values[name]
        partner = _at_same_position(name, reference, candidate)
        if partner in theirs:
            yield name, value, theirs.pop(partner)
        elif tensors(value):
            yield name, value, MISSING
    for name, value in theirs.items():
        if tensors(value):
            yield name, MISSING, value


def argument_leaves(name: str, reference: Any, candidate: Any) -> list[LeafPair]:
    """Return the pairs of leaves of one argument; paths begin with its name."""
    if isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor):
        return [(name, reference, candidate)]
    if candidate is MISSING:
        return [(join(name, path), leaf, MISSING) for path, leaf in tensors(reference)]
    if reference is MISSING:
        return [(join(name, path), MISSING, leaf) for path, leaf in tensors(candidate)]
    return [
        (join(name, path), mine, theirs) for path, mine, theirs in match_leaves(leaves(reference), leaves(candidate))
    ]


def _at_same_position(name: str, reference: Bound, candidate: Bound) -> str | None:
    if name in reference.positional:
        position = reference.positional.index(name)
        if position < len(candidate.positional):
            return candidate.positional[position]
    return None


def _is_nothing(pair: LeafPair) -> bool:
    return all(leaf is None or leaf is MISSING for leaf in pair[1:])
