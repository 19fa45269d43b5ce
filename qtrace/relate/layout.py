"""The same values in another layout: axes permuted, axes of size 1 added or dropped, another shape in one order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, permutations
from typing import Any

import torch

from qtrace.records import Relation

# A layout explains a pair when the two correlate: correlation^2 above this. Wrong layouts give about 0; the
# right one gives nearly 1, also where the candidate is coarsely quantized or scaled by a folded factor.
# Integers must be equal.
_AGREEMENT = 0.75
_MOST_PERMUTATIONS = 720
# Layouts are ranked on at most this many elements, spread over the whole tensor.
_SAMPLE = 65_536


def undo_layout(reference: torch.Tensor, candidate: torch.Tensor) -> tuple[torch.Tensor, Relation] | None:
    """Return the candidate in the reference's layout, and the relation; None where no layout explains it.

    Args:
        reference: any shape.
        candidate: the same number of elements in another shape.

    The layouts tried are every permutation of the axes larger than 1 that gives the reference's shape, and the
    plain reshape. The one with the largest squared correlation is taken if that is above 0.75 (integers: if the
    values are equal); equal ones are told apart by ||reference - candidate||. Parameters say what to do to the
    candidate: `permute` (over its axes larger than 1), `reshape` (to this shape); `squeeze` and `unsqueeze`
    name the axes of size 1 that it has more or less. `error` is left to the caller.
    """
    if reference.numel() != candidate.numel() or reference.numel() == 0:
        return None
    first, second = reference.detach(), candidate.detach()
    picks = _picks(reference.numel(), reference.device)
    wanted = first.reshape(-1)[picks].to(torch.float64)
    best: tuple[tuple[float, float], torch.Tensor, dict[str, Any]] | None = None
    exact = not (first.is_floating_point() or second.is_floating_point())
    for view, parameters in _layouts(first, second):
        found = view.reshape(-1)[picks].to(device=wanted.device, dtype=torch.float64)
        rank = _agreement(wanted, found)
        if (rank[1] == 0 if exact else rank[0] > _AGREEMENT) and (best is None or rank > best[0]):
            best = (rank, view, parameters)
            if rank[1] == 0:
                break
    if best is None:
        return None
    return best[1], Relation("layout", best[2])


def _agreement(wanted: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Return correlation^2 (rounded, so that ties are ties) and the negative distance; larger is better."""
    distance = float((wanted - found).norm())
    if distance == 0:
        return 1.0, 0.0
    first, second = wanted - wanted.mean(), found - found.mean()
    squares = float(first.dot(first) * second.dot(second))
    correlation2 = float(first.dot(second)) ** 2 / squares if squares > 0 else 0.0
    return round(correlation2, 9), -distance


def _layouts(reference: torch.Tensor, candidate: torch.Tensor) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    wanted = [n for n in reference.shape if n != 1]
    given = [n for n in candidate.shape if n != 1]
    ones = _ones(reference, candidate)
    if wanted == given:
        yield candidate.reshape(reference.shape), ones or {"reshape": list(reference.shape)}
    else:
        yield candidate.reshape(reference.shape), {"reshape": list(reference.shape)}
    if sorted(wanted) == sorted(given):
        inner = candidate.reshape(given)
        identity = tuple(range(len(given)))
        fitting = (
            order for order in permutations(identity) if order != identity and [given[axis] for axis in order] == wanted
        )
        for order in islice(fitting, _MOST_PERMUTATIONS):
            yield inner.permute(order).reshape(reference.shape), {"permute": list(order), **ones}


def _ones(reference: torch.Tensor, candidate: torch.Tensor) -> dict[str, Any]:
    """Name the axes of size 1 that the candidate has and the reference lacks in number, or the other way round."""
    extra = [axis for axis, n in enumerate(candidate.shape) if n == 1]
    lacking = [axis for axis, n in enumerate(reference.shape) if n == 1]
    if len(extra) > len(lacking):
        return {"squeeze": extra}
    if len(lacking) > len(extra):
        return {"unsqueeze": lacking}
    return {}


def _picks(count: int, device: torch.device) -> torch.Tensor:
    if count <= _SAMPLE:
        return torch.arange(count, device=device)
    # An odd stride near the golden ratio of the length visits all axes evenly, whatever their sizes.
    stride = int(count * 0.618_033_988_749) | 1
    return torch.arange(_SAMPLE, device=device).mul_(stride).remainder_(count)
