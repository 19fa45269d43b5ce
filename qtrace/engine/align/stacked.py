"""Weights on top of each other: one projection for q, k and v, several for one, one tensor for all experts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from qtrace.engine.align.module_info import ModuleInfo, Tree
from qtrace.engine.align.weights import WeightSample, matrix, weight_of

_MOST_PARTS = 4
# Below this two rows cannot begin the same weight, however coarsely one of them is rounded.
_UNLIKE = 0.8


def projections(
    parts_in: Tree, wholes_in: Tree, parts: Collection[str], wholes: Collection[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (paths of neighbours, path) where the one module holds the weights of the several, stacked."""
    known = _Wholes([wholes_in[path] for path in wholes])
    if not known:
        return
    for parent in sorted({path.rpartition(".")[0] for path in parts}):
        inside = [child for child in parts_in.children(parent) if child.path in parts]
        weights = {child.path: weight for child in inside if (weight := weight_of(child.module)) is not None}
        ones = list(weights)
        for length in range(min(_MOST_PARTS, len(ones)), 1, -1):
            for first in range(len(ones) - length + 1):
                group = ones[first : first + length]
                whole = known.of([weights[path] for path in group])
                if whole is not None:
                    yield tuple(group), whole


def grown(reference: Tree, candidate: Tree, names: dict[str, str], open_reference: Collection[str]) -> dict[str, str]:
    """Return the pairs beside open modules whose candidate has more rows: its name may be that of one of its parts."""
    parents = {path.rpartition(".")[0] for path in open_reference}
    found = {}
    for path, name in names.items():
        if not name or name.rpartition(".")[0] not in parents or not candidate[path].runs:
            continue
        mine, theirs = weight_of(reference[name].module), weight_of(candidate[path].module)
        if mine is not None and theirs is not None and mine.shape[1:] == theirs.shape[1:] and len(mine) < len(theirs):
            found[path] = name
    return found


def experts(reference: Tree, candidate: Tree, open_reference: Collection[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (reference paths, candidate path) where one module holds the weights of all members of a list.

    As mixtures of experts do: `experts.3.up` is then the fourth slice of a tensor with three axes, or some of its
    rows, or of its columns. What such a member has beside its weights, say an activation, is computed there as well.
    """
    lists = {path.rpartition(".")[0] for path in open_reference if path.rpartition(".")[2].isdigit()}
    lists |= {parent for path in open_reference if (parent := _list_around(path))}
    for holder in candidate.modules.values() if lists else ():
        tensors = _stacks(holder)
        for parent in sorted(lists) if tensors else ():
            members = [child for child in reference.children(parent) if child.path.rpartition(".")[2].isdigit()]
            fitting = [tensor for tensor in tensors if len(tensor) == len(members)]
            inside = [[path for path in open_reference if _is_at_or_in(path, one.path)] for one in members]
            if fitting and all(_held(reference, ones, fitting, n) for n, ones in enumerate(inside) if ones):
                yield tuple(path for ones in inside for path in ones), holder.path


class _Wholes:
    """Weights that may be several others on top of each other, by size and by how they begin."""

    def __init__(self, modules: Sequence[ModuleInfo]) -> None:
        self._paths: dict[tuple[int, ...], list[str]] = {}
        self._weights: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for module in modules:
            weight = weight_of(module.module)
            if weight is not None and len(weight) > 1:
                self._paths.setdefault(tuple(weight.shape), []).append(module.path)
                self._weights.setdefault(tuple(weight.shape), []).append(weight)
        self._beginnings = {size: _beginnings(weights) for size, weights in self._weights.items()}

    def __bool__(self) -> bool:
        return bool(self._paths)

    def of(self, weights: Sequence[torch.Tensor]) -> str | None:
        """Return the module whose weight is these on top of each other."""
        size = (sum(map(len, weights)), *weights[0].shape[1:])
        if size not in self._paths or len({weight.shape[1:] for weight in weights}) > 1:
            return None
        alike = (self._beginnings[size] @ _beginnings(weights[:1])[0]).abs()
        places: list[int] = (~(alike < _UNLIKE)).nonzero().flatten().tolist()
        for place in places:
            if _is_stacked(weights, self._weights[size][place]):
                return self._paths[size][place]
        return None


def _beginnings(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the first row of each weight, of length 1; NaN where it is of zeros."""
    rows = torch.stack([weight[0].detach().cpu().double() for weight in weights])
    lengths: torch.Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths


def _is_stacked(weights: Sequence[torch.Tensor], together: torch.Tensor) -> bool:
    parts = torch.split_with_sizes(together, [len(weight) for weight in weights])
    return all(map(_is_same, weights, parts))


def _is_same(weight: torch.Tensor, other: torch.Tensor) -> bool:
    sample = WeightSample.of(weight)
    return sample is not None and sample.is_in(WeightSample.of(other))


def _stacks(module: ModuleInfo) -> list[torch.Tensor]:
    """Return a running module's own tensors with three axes."""
    if module.module is None or not module.runs:
        return []
    own = [value for value in module.module._parameters.values() if value is not None and value.dim() == 3]
    read = [(value.shape, matrix(value)) for value in own]
    return [values.reshape(shape) for shape, values in read if values is not None and values.numel() == shape.numel()]


def _held(reference: Tree, paths: Sequence[str], tensors: Sequence[torch.Tensor], place: int) -> bool:
    """Return whether the weights of all these modules stand in the tensors' slices of that place."""
    weights = [weight for path in paths if (weight := weight_of(reference[path].module)) is not None]
    return bool(weights) and all(any(_stands_in(weight, one[place]) for one in tensors) for weight in weights)


def _stands_in(weight: torch.Tensor, part: torch.Tensor) -> bool:
    for turned in (part, part.T):
        if turned.shape[1] != weight.shape[1] or len(turned) % len(weight):
            continue
        if any(_is_same(weight, rows) for rows in turned.chunk(len(turned) // len(weight))):
            return True
    return False


def _list_around(path: str) -> str:
    """Return the path before the last component that is a number; "" where there is none."""
    parts = path.split(".")
    while parts and not parts[-1].isdigit():
        parts.pop()
    return ".".join(parts[:-1])


def _is_at_or_in(path: str, around: str) -> bool:
    return path == around or path.startswith(f"{around}.")
