"""Finds and undoes layouts: axes permuted, dropped or repeated, or another shape with the same order of elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations
from typing import Any

import torch

from qtrace.report.records import Relation

# A layout explains a pair where correlation^2 is above this. Wrong layouts give about 0; the right one gives
# nearly 1, also where the candidate is coarsely quantized or scaled by a folded factor. Integers must be equal.
_AGREEMENT = 0.75
_MOST_PERMUTATIONS = 720
# Nobody's tensors have more axes than this, and all their orders are tried.
_MOST_AXES = 6
# Layouts are ranked on at most this many elements, spread over the whole tensor.
_SAMPLE = 65_536
# The parameters of `undo_layout`; a relation found after a layout was undone carries these too.
_KEYS = frozenset({"permute", "reshape", "squeeze", "unsqueeze", "expand", "repeated"})


def undo_layout(reference: torch.Tensor, candidate: torch.Tensor) -> tuple[torch.Tensor, Relation] | None:
    """Return the candidate in the reference's layout, and the relation; None where no layout explains it.

    Args:
        reference: any shape.
        candidate: the same number of elements in another shape, or a shape that broadcasts to the reference's, or the
            reverse.

    The layouts tried are every permutation of the axes larger than 1 that gives the reference's shape, and the
    plain reshape. The one with the largest squared correlation is chosen if that is above 0.75 (integers: if the
    values are equal); ||reference - candidate|| breaks ties. The parameters say how to transform the candidate:
    `permute` (over its axes larger than 1), `reshape` (to this shape); `squeeze` and `unsqueeze` name the axes of
    size 1 that it has in excess or lacks. A candidate that serves several batch rows at once, as a mask may, is
    expanded to this shape (`expand`), or it is `repeated` where the reference is not. Repeated values must be exactly
    equal. The caller sets `error`.
    """
    if reference.numel() == 0 or candidate.numel() == 0:
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


def presumed_layout(reference: torch.Tensor, candidate: torch.Tensor) -> tuple[torch.Tensor, Relation] | None:
    """Return the candidate in the only layout that the two shapes leave, and the relation; None where several do.

    For floats whose values do not agree in any layout, so that they can be measured all the same; whether they agree
    is up to the measurement. The layout is one of these, axes of size 1 aside:

    - the axes are the same;
    - one permutation alone leads to the reference's shape, or one alone that moves a single axis (channels first or
      last, heads before or behind tokens);
    - neighbouring axes of the one are merged in the other, as when tokens are flattened.

    The relation has the parameter `presumed`.
    """
    floats = reference.is_floating_point() and candidate.is_floating_point()
    if not floats or reference.numel() != candidate.numel() or reference.numel() == 0:
        return None
    wanted = [n for n in reference.shape if n != 1]
    given = [n for n in candidate.shape if n != 1]
    ones = _ones(reference, candidate)
    parameters: dict[str, Any] | None = None
    if wanted == given or _merges(wanted, given) or _merges(given, wanted):
        parameters = (ones if wanted == given else {}) or {"reshape": list(reference.shape)}
    elif sorted(wanted) == sorted(given) and len(given) <= _MOST_AXES:
        orders = [order for order in permutations(range(len(given))) if [given[axis] for axis in order] == wanted]
        moves = [order for order in orders if _moves_one_axis(order)]
        only = orders if len(orders) == 1 else moves
        parameters = {"permute": list(only[0]), **ones} if len(only) == 1 else None
    if parameters is None:
        return None
    view = with_layout_undone(candidate.detach(), reference.shape, parameters)
    return None if view is None else (view, Relation("layout", {**parameters, "presumed": True}))


def _merges(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether merging neighbouring axes of `shape` gives `other`."""
    place = 0
    for size in other:
        product = 1
        while place < len(shape) and product < size:
            product *= shape[place]
            place += 1
        if product != size:
            return False
    return place == len(shape)


def _moves_one_axis(order: Sequence[int]) -> bool:
    """Return whether an order of axes is the given one with a single axis moved elsewhere."""
    return any(
        [axis for axis in order if axis != moved] == [n for n in range(len(order)) if n != moved] for moved in order
    )


def with_layout_undone(
    candidate: torch.Tensor, shape: torch.Size, parameters: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return the candidate in the reference's layout, as a relation's parameters say.

    The result is None where they do not fit the tensor, or where they name no layout and the shapes differ.
    """
    if not _KEYS & parameters.keys():
        return candidate if candidate.shape == shape else None
    if "expand" in parameters:
        return candidate.expand(shape) if _broadcasts(candidate.shape, shape) else None
    if "repeated" in parameters:
        return _once(candidate, shape) if _broadcasts(shape, candidate.shape) else None
    if candidate.numel() != shape.numel():
        return None
    order = parameters.get("permute")
    if order is None:
        return candidate.reshape(shape)
    given = [n for n in candidate.shape if n != 1]
    if len(given) != len(order):
        return None
    return candidate.reshape(given).permute(order).reshape(shape)


def with_layout(values: torch.Tensor, shape: torch.Size, parameters: Mapping[str, Any]) -> torch.Tensor:
    """Return values that are in the reference's layout in the candidate's layout, which has this shape."""
    if "expand" in parameters:
        return _once(values, shape)
    if "repeated" in parameters:
        return values.expand(shape)
    order = parameters.get("permute")
    if order is None:
        return values.reshape(shape)
    given = [n for n in shape if n != 1]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return values.reshape([given[axis] for axis in order]).permute(inverse).reshape(shape)


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
    if reference.numel() != candidate.numel():
        if _broadcasts(candidate.shape, reference.shape):
            if torch.equal(_once(reference, candidate.shape).expand(reference.shape), reference):
                yield candidate.expand(reference.shape), {"expand": list(reference.shape)}
        elif _broadcasts(reference.shape, candidate.shape):
            once = _once(candidate, reference.shape)
            if torch.equal(once.expand(candidate.shape), candidate):
                yield once, {"repeated": list(candidate.shape)}
        return
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


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    aligned = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, wanted) for n, wanted in aligned)


def _once(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return values in a shape that broadcasts to theirs: the first of the repeated ones."""
    missing = values.dim() - len(shape)
    for axis, size in enumerate(values.shape):
        if size != 1 and (axis < missing or shape[axis - missing] == 1):
            values = values.narrow(axis, 0, 1)
    return values.reshape(shape)


def _ones(reference: torch.Tensor, candidate: torch.Tensor) -> dict[str, Any]:
    """Return the axes of size 1 of the side that has more: "squeeze" if the candidate, "unsqueeze" if the reference."""
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
