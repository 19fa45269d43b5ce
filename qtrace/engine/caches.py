"""What a model returns for itself, to be handed in again: a key-value cache, which it may keep in any convention.

It is an object that the model's modules were handed, and that the model returns: nobody else reads it. A folded
scale, heads in another order or turned values in a cache are no difference as long as all that is returned beside it
agrees. A convention may be each head's own, so heads count as channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from qtrace.engine.pair import Pair
from qtrace.numerics import NoValues, plain
from qtrace.numerics.relations import excuses, relate
from qtrace.report.records import Relation, Statistics

# Where so many tensors are in no known convention, the others are not asked: the cache is another one.
_MOST_UNRELATED = 2
# A relative L2 error beyond which it is no noise; that of five bits is below.
_MOST_NOISE = 0.1


CachePairs = list[tuple[str, Any, Any, Pair]]


def inside(caches: Iterable[str], pairs: CachePairs) -> CachePairs:
    """Return those of the pairs that lie in one of the objects at these paths."""
    beginnings = tuple(f"{path}." for path in caches)
    return [pair for pair in pairs if pair[0].startswith(beginnings)]


def conventions(pairs: CachePairs, *, noise: float = 0.0) -> dict[str, Relation]:
    """Return, by path, how the candidate holds the same values in another convention; the others are left out.

    Heads stand for channels where a tensor is [batch, heads, tokens, channels]. `noise` is the relative L2 error of
    what is returned beside the cache, as under quantization: one factor may leave as much.
    """
    found: dict[str, Relation] = {}
    unrelated = 0
    for path, mine, theirs, pair in pairs:
        relation = _convention(mine, theirs, pair.statistics()) or _noisy_gain(mine, theirs, noise)
        if relation is not None:
            found[path] = relation
            continue
        off = pair.statistics().rel_l2
        if off is not None and off <= min(noise, _MOST_NOISE):
            continue
        unrelated += 1
        if unrelated == _MOST_UNRELATED:
            break
    return found


def _convention(reference: Any, candidate: Any, found: Statistics) -> Relation | None:
    if not (isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor)):
        return None
    try:
        mine, theirs = plain(reference), plain(candidate)
    except NoValues:
        return None
    if mine.shape != theirs.shape or not mine.is_cpu or not theirs.is_cpu:
        return None
    relation = relate(mine, theirs, found, thorough=True)
    if not excuses(relation) and mine.dim() == 4:
        relation = relate(_heads_as_channels(mine), _heads_as_channels(theirs), found, thorough=True)
        if relation is not None:
            relation = replace(relation, parameters={**relation.parameters, "heads": "as channels"})
    return relation if excuses(relation) else None


def _noisy_gain(reference: Any, candidate: Any, noise: float) -> Relation | None:
    """Return the factor that leaves no more than the noise, as a relative L2 error, of the candidate's values."""
    try:
        mine, theirs = (plain(side).double().flatten() for side in (reference, candidate))
    except (NoValues, AttributeError):
        return None
    size, reached = float(mine.dot(mine)), float(theirs.norm())
    if mine.shape != theirs.shape or not size > 0 or not reached > 0:
        return None
    factor = float(mine.dot(theirs)) / size
    left = float((theirs - factor * mine).norm()) / reached
    # A factor within the noise of one is no convention.
    if not left <= min(noise, _MOST_NOISE) or not abs(factor - 1) > max(noise, _MOST_NOISE):
        return None
    return Relation("gain", {"factor": factor}, left)


def _heads_as_channels(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2).flatten(2)
