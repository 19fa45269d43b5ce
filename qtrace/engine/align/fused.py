"""Modules that the candidate computes in one: convolution, batch norm and ReLU.

Names lie here: a fused `features.0` has the path of the convolution and returns what the ReLU does. So it answers to
the last module of its group, and the others have no partner. A batch norm alone that was folded into the convolution
leaves that what it was, up to a gain and a shift, and so the pair is kept. Nothing is called fused for its name alone:
a folded norm shows in the weights, a fused activation in the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qtrace.engine.align.module_info import ModuleInfo, Names, Tree
from qtrace.engine.align.weights import weight_of

_NORMS = (torch.nn.modules.batchnorm._BatchNorm,)
# A folded weight was scaled by the norm's gain; rounding to 8 bits leaves it there within this.
_CLOSE = 0.05


@dataclass(frozen=True, slots=True)
class Fusion:
    """A group of reference modules in execution order that one candidate module computes.

    `last` is the candidate module whose output is that of the group's last one: the fused one itself, or what is left
    in the last one's place and passes its input on. `folds` says that there are only norms behind the first one.
    """

    members: tuple[str, ...]
    candidate: str
    last: str
    folds: bool


def fusions(reference: Tree, candidate: Tree, names: Names) -> list[Fusion]:
    """Return the groups of a layer and what follows it directly that one module of the candidate computes."""
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
    """Return the first leaf, and those directly behind it that its partner computes, too."""
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
    """Return whether nothing of the candidate does what this module does: nothing is left, or only what passes on."""
    if not partners:
        return True
    return module.type != "Identity" and all(partner.type == "Identity" for partner in partners)


def _computes(partner: ModuleInfo, head: ModuleInfo, module: ModuleInfo) -> bool:
    """Return whether the head's partner does what `module` does as well."""
    if isinstance(module.module, _NORMS):
        distance = _folding_distance(partner.module, head.module, module.module)
        return distance is not None and distance[0] <= _CLOSE
    return module.type.lower() in partner.type.lower() and module.type.lower() not in head.type.lower()


def _shows(partner: ModuleInfo, head: ModuleInfo, *norms: ModuleInfo) -> bool:
    """Return whether the partner's weight is nearer to one with the first norm folded in than to the head's own.

    A norm whose gain is 1 everywhere changes no weight: nothing then tells it from one that was left out.
    """
    distance = _folding_distance(partner.module, head.module, norms[0].module)
    return distance is not None and distance[0] < distance[1]


def _folding_distance(
    partner: torch.nn.Module | None, head: torch.nn.Module | None, norm: torch.nn.Module | None
) -> tuple[float, float] | None:
    """Return how far the partner's weight, and the head's own, are from the head's times the norm's gain per channel.

    Both relative to the length of that; None where one of them cannot be read.
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
    """Return a module's weight; of a sequence of fused ones, the first one's."""
    inside = () if module is None else module.modules()
    return next((weight for one in inside if (weight := weight_of(one)) is not None), None)
