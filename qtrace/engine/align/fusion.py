"""Finds modules that one side computes in one: stacked projections, and convolution with batch norm and ReLU."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from qtrace.engine.align.module_info import ModuleInfo, Names, Tree
from qtrace.engine.align.weights import WeightSample, matrix, weight_of

_MOST_PARTS = 4
# Below this cosine two rows cannot begin the same weight, however coarsely one of them is rounded.
_UNLIKE = 0.8
_NORMS = (torch.nn.modules.batchnorm._BatchNorm,)
# A folded weight is the original scaled by the norm's gain; rounding to 8 bits keeps it within this distance.
_CLOSE = 0.05


def projections(
    parts_in: Tree, wholes_in: Tree, parts: Collection[str], wholes: Collection[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (paths of neighbours, path) where the module at the path holds the stacked weights of the neighbours."""
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
    """Return the pairs beside open modules whose candidate has more rows: its name may be that of one part."""
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

    Mixtures of experts do so: `experts.3.up` is then the fourth slice of a tensor with three axes, or some of the
    slice's rows or columns. The module also computes the members' modules without weights, such as activations.
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


# Of stacked weights in another order so many rows are looked for, nearly all of which must be there...
_MOST_ROWS = 64
_MOST_OF_THEM = 0.9
# ...each with a cosine above this: rows of so many numbers are not alike by chance.
_SAME_ROW = 0.999
_FEW = 8


class _Wholes:
    """Weights that may be a stack of several others, by size and by their first rows."""

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
        """Return the path of the module whose weight is the stack of these."""
        size = (sum(map(len, weights)), *weights[0].shape[1:])
        if size not in self._paths or len({weight.shape[1:] for weight in weights}) > 1:
            return None
        alike = (self._beginnings[size] @ _beginnings(weights[:1])[0]).abs()
        places: list[int] = (~(alike < _UNLIKE)).nonzero().flatten().tolist()
        for place in places:
            together = self._weights[size][place]
            if _is_stacked(weights, together) or _has_the_rows(weights, together):
                return self._paths[size][place]
        return None


def _beginnings(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the first row of each weight, scaled to length 1; NaN for a row of zeros."""
    rows = torch.stack([weight[0].detach().cpu().double() for weight in weights])
    lengths: torch.Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths


def _is_stacked(weights: Sequence[torch.Tensor], together: torch.Tensor) -> bool:
    parts = torch.split_with_sizes(together, [len(weight) for weight in weights])
    return all(map(_is_same, weights, parts))


def _has_the_rows(weights: Sequence[torch.Tensor], together: torch.Tensor) -> bool:
    """Return whether a matrix holds nearly all rows of these, in whatever order: head by head, say."""
    parts = torch.cat([weight.detach().cpu().double() for weight in weights])
    chosen = parts[torch.linspace(0, len(parts) - 1, min(len(parts), _MOST_ROWS)).long()]
    whole = together.detach().cpu().double()
    lengths = chosen.norm(dim=1, keepdim=True), whole.norm(dim=1, keepdim=True)
    alike = (chosen / lengths[0]) @ (whole / lengths[1]).T
    best, rows = alike.nan_to_num(0.0).max(1)
    fitting = best > _SAME_ROW
    return whole.shape[1] >= _FEW and float(fitting.double().mean()) >= _MOST_OF_THEM and _is_distinct(rows[fitting])


def _is_distinct(places: torch.Tensor) -> bool:
    return len(set(places.tolist())) == len(places)


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
    """Return whether the tensors' slices at that place hold the weights of all these modules."""
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


@dataclass(frozen=True, slots=True)
class Fusion:
    """A group of reference modules in execution order that one candidate module computes.

    `last` is the candidate module whose output is that of the group's last module: the fused module itself, or one
    that is left in the last one's place and passes its input on. `folds` says that only norms follow the first module.
    """

    members: tuple[str, ...]
    candidate: str
    last: str
    folds: bool


def fusions(reference: Tree, candidate: Tree, names: Names) -> list[Fusion]:
    """Return the groups of a layer and the modules directly after it that one module of the candidate computes."""
    answering: dict[str, list[ModuleInfo]] = {}
    for path, name in names.items():
        if candidate[path].runs:
            answering.setdefault(name, []).append(candidate[path])
    found = []
    for path in reference.modules:
        leaves = [module for module in reference.children(path) if not reference.children(module.path)]
        position = 0
        while position < len(leaves):
            group = _group(leaves[position:], answering)
            if len(group) > 1:
                partner = answering[group[0].path][0].path
                passed_on = answering.get(group[-1].path)
                last = passed_on[0].path if passed_on else partner
                folds = all(isinstance(module.module, _NORMS) for module in group[1:])
                if not folds or _shows(candidate[partner], *group):
                    found.append(Fusion(tuple(module.path for module in group), partner, last, folds))
            position += max(1, len(group))
    return found


def _group(leaves: list[ModuleInfo], answering: Mapping[str, list[ModuleInfo]]) -> list[ModuleInfo]:
    """Return the first leaf, and the leaves directly after it that its partner computes, too."""
    head = leaves[0]
    group = [head]
    partners = answering.get(head.path)
    for module in leaves[1:]:
        is_gone = _is_gone(module, answering.get(module.path))
        if not partners or not is_gone or not _computes(partners[0], head, module):
            break
        group.append(module)
    return group


def _is_gone(module: ModuleInfo, partners: list[ModuleInfo] | None) -> bool:
    """Return whether the candidate has no module for this one's computation: no partner, or only identities."""
    if not partners:
        return True
    return module.type != "Identity" and all(partner.type == "Identity" for partner in partners)


def _computes(partner: ModuleInfo, head: ModuleInfo, module: ModuleInfo) -> bool:
    """Return whether the head's partner also computes `module`."""
    if isinstance(module.module, _NORMS):
        distance = _folding_distance(partner.module, head.module, module.module)
        return distance is not None and distance[0] <= _CLOSE
    return module.type.lower() in partner.type.lower() and module.type.lower() not in head.type.lower()


def _shows(partner: ModuleInfo, head: ModuleInfo, *norms: ModuleInfo) -> bool:
    """Return whether the partner's weight is nearer than the head's own to the head's with the first norm folded in.

    A norm whose gain is 1 everywhere changes no weight, and cannot be distinguished from one that was left out.
    """
    distance = _folding_distance(partner.module, head.module, norms[0].module)
    return distance is not None and distance[0] < distance[1]


def _folding_distance(
    partner: torch.nn.Module | None, head: torch.nn.Module | None, norm: torch.nn.Module | None
) -> tuple[float, float] | None:
    """Return how far the partner's weight, and the head's own, are from the head's times the norm's gain per channel.

    Both distances are relative to the length of that product; None where one of the weights cannot be read.
    """
    mine, theirs = weight_of(head), _weight_inside(partner)
    variance, gamma = getattr(norm, "running_var", None), getattr(norm, "weight", None)
    if mine is None or theirs is None or mine.shape != theirs.shape or not isinstance(variance, torch.Tensor):
        return None
    gain = (variance.double() + float(getattr(norm, "eps", 0.0))).rsqrt()
    if isinstance(gamma, torch.Tensor):
        gain = gain * gamma.detach().double()
    if len(gain) != len(mine):
        return None
    expected = mine.detach().double() * gain[:, None]
    length = float(expected.norm())
    distances = [float((weight.detach().double() - expected).norm()) for weight in (theirs, mine)]
    return (distances[0] / length, distances[1] / length) if length else None


def _weight_inside(module: torch.nn.Module | None) -> torch.Tensor | None:
    """Return a module's weight; for a sequence of fused modules, the weight of the first."""
    inside = () if module is None else module.modules()
    return next((weight for one in inside if (weight := weight_of(one)) is not None), None)
