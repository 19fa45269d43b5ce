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

from qtrace.lockstep.pair import Pair
from qtrace.records import Relation, Statistics
from qtrace.relate import excuses, relate
from qtrace.stats import NoValues, plain

# Where so many tensors are in no known convention, the others are not asked: the cache is another one.
_MOST_UNRELATED = 2


CachePairs = list[tuple[str, Any, Any, Pair]]


def inside(caches: Iterable[str], pairs: CachePairs) -> CachePairs:
    """Return those of the pairs that lie in one of the objects at these paths."""
    beginnings = tuple(f"{path}." for path in caches)
    return [pair for pair in pairs if pair[0].startswith(beginnings)]


def conventions(pairs: CachePairs) -> dict[str, Relation]:
    """Return, by path, how the candidate holds the same values in another convention; the others are left out.

    Heads stand for channels where a tensor is [batch, heads, tokens, channels].
    """
    found: dict[str, Relation] = {}
    unrelated = 0
    for path, mine, theirs, pair in pairs:
        relation = _convention(mine, theirs, pair.statistics())
        if relation is not None:
            found[path] = relation
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


def _heads_as_channels(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2).flatten(2)
