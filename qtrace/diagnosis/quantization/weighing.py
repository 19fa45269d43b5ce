"""Weighs each weight of the candidate against the reference's: how it was before it was rounded, or how it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qtrace.diagnosis.projections import Projection, all_projections, row_orders, stacked
from qtrace.diagnosis.quantization.effective_weight import (
    Affine,
    float_values,
    is_linear,
    linear_map,
    probed,
    table_of,
    weight_of,
)
from qtrace.diagnosis.quantization.folded_scales import Folds, Unrounded
from qtrace.diagnosis.quantization.straight_through import StraightThrough
from qtrace.diagnosis.quantization.weight_faults import bias_fault, weight_fault
from qtrace.diagnosis.runner import Runner

# Weights of fewer elements (norms, biases) are not rounded, or their rounding cannot be told from a fault.
_FEWEST = 256
# Computing a weight in another order moves it by so many times the precision of its dtype.
_OWN_ROUNDING = 16


@dataclass(slots=True)
class Weighed:
    """What is known of a weight of the candidate's.

    `fault` holds the reference's and it, where it is no rounding of that one; `scaled` tells what gains were fitted.
    `bias` holds the reference's and that which a module adds that stores codes; `lacks` is a norm whose scales it was
    not multiplied by, `mistakes` one that was divided by others than it was multiplied by, which are its `columns`.
    """

    name: str
    fault: tuple[Tensor, Tensor] | None = None
    scaled: str = ""
    lacks: str = ""
    mistakes: str = ""
    columns: Tensor | None = None
    bias: tuple[Tensor | None, Tensor] | None = None
    _said: tuple[str, ...] | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return in words how the weight and the bias differ beyond rounding."""
        # Reading the weight takes a while.
        if self._said is None:
            found = [f"{self.name} {weight_fault(*self.fault)}"] if self.fault is not None else []
            found += [f"{self.name} is the reference's {self.scaled}"] if self.scaled else []
            if self.lacks:
                found.append(f"{self.name} is not multiplied by the scales that {self.lacks} was divided by")
            if self.mistakes:
                found.append(f"{self.name} is multiplied by other scales than {self.mistakes} is divided by")
            other = bias_fault(*self.bias) if self.bias is not None else None
            self._said = (*found, *([other] if other else ()))
        return self._said

    def note(self, *, lacks: str, mistakes: str) -> None:
        """Note a norm whose scales the weight does not take up, or takes up wrongly."""
        self.lacks, self.mistakes, self._said = lacks, mistakes, None


@dataclass(slots=True)
class Unrounding:
    """What takes the rounding out of a candidate's weights.

    `weights` are parameters to put in the place of others, by (module, name); `forwards` are functions in the place of
    the forward of modules that store codes. `weighed` holds what is known of each weight that differs, by the
    reference's path. `is_exact` says that all weights are the reference's up to what is known without noise,
    `is_needed` that some of them were rounded. `same` are the parameters, by (module, name), that are the reference's
    up to rounding; `coded` the modules that store codes.
    """

    weights: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)
    forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = field(default_factory=list)
    weighed: dict[str, Weighed] = field(default_factory=dict)
    is_exact: bool = True
    is_needed: bool = False
    same: set[tuple[str, str]] = field(default_factory=set)
    coded: set[str] = field(default_factory=set)

    def sentences(self, module: str) -> tuple[str, ...] | None:
        """Return how a module's weights differ beyond rounding, in words; None where none of them was weighed."""
        known = self.weighed.get(module)
        return None if known is None else known.sentences

    def faulty(self) -> list[str]:
        """Return the reference's modules with a weight that is no rounding of the reference's."""
        return [path for path, known in self.weighed.items() if known.fault is not None]


def weighed(runner: Runner) -> Unrounding:
    """Return what is known of the candidate's weights, and how to take the rounding out of them; nothing is changed.

    Each weight of the candidate is held against that of the reference's module with which it is aligned. A module that
    stores codes, and no weight of the reference's shape, is asked with unit vectors what it computes.
    """
    modules = runner.models[0].modules
    keys = dict.fromkeys(runner.plan.candidate_keys.values())
    pairs = {key: (modules[key], runner.partners(key)) for key in keys}
    folds = Folds(pairs)
    found = Unrounding()
    seen: set[tuple[int, str]] = set()
    for key, (mine, partners) in pairs.items():
        for name, parameter in mine._parameters.items():
            ours = float_values(parameter)
            if ours is None or ours.dim() < 2 or ours.numel() < _FEWEST:
                continue
            holder, held = _holder(partners, name, ours)
            if holder is not None and held is not None:
                if torch.equal(held, ours):
                    found.same.add((key, name))
                    continue
                if (id(holder), name) in seen:
                    continue
                seen.add((id(holder), name))
                _take_weight(found, folds, key, (holder, name), ours, held)
            elif name == "weight" and is_linear(mine) and not _is_held(partners, ours):
                _take_linear(found, folds, key, mine, partners)
            elif name == "weight" and isinstance(mine, nn.Embedding) and not _is_held(partners, ours):
                _take_table(found, folds, key, mine, partners[0])
        if not mine._parameters and not is_linear(mine):
            _take_linear(found, folds, key, mine, partners)
    for one in all_projections(runner):
        if not one.is_split:
            _take_fused(found, folds, one, row_orders(runner, one))
    return found


def _holder(partners: Sequence[nn.Module], name: str, ours: Tensor) -> tuple[nn.Module | None, Tensor | None]:
    """Return which of the partners holds a tensor of this name, shape and dtype, and its values.

    Values of eight bits are codes.
    """
    for partner in partners:
        own = partner._parameters.get(name)
        held = float_values(own) if own is not None and own.itemsize > 1 else None
        if held is not None and held.shape == ours.shape and held.dtype == ours.dtype and held.device == ours.device:
            return partner, held
    return None, None


def _is_held(partners: Sequence[nn.Module], ours: Tensor) -> bool:
    """Return whether a module inside holds a float weight of this shape, so that nothing is stored as codes."""
    inside = (held for partner in partners for module in partner.modules() for held in module._parameters.values())
    return any(
        held is not None and held.shape == ours.shape and held.is_floating_point() and held.itemsize > 1
        for held in inside
    )


def _take_weight(
    found: Unrounding, folds: Folds, key: str, place: tuple[nn.Module, str], ours: Tensor, held: Tensor
) -> None:
    before = folds.before(key, ours, held)
    known = found.weighed.setdefault(key, Weighed(place[1]))
    if before is None:
        known.name, known.fault = place[1], (ours, held)
        return
    found.same |= {(key, place[1])} if before.is_same else set()
    known.scaled = known.scaled or before.fitted
    known.columns = before.columns
    found.weights.append((*place, before.weight.to(held.dtype)))
    found.is_exact &= before.is_exact
    found.is_needed |= _is_rounded_off(before.weight, held)


def _take_linear(found: Unrounding, folds: Folds, key: str, mine: nn.Module, partners: Sequence[nn.Module]) -> None:
    """Take a module that stores codes, or stands for several modules of the reference."""
    outermost, ours = partners[0], linear_map(mine)
    if ours is None:
        return
    holder, held = _holder(partners, "weight", ours.weight)
    if holder is not None and held is not None:
        _take_weight(found, folds, key, (holder, "weight"), ours.weight, held)
        return
    map_ = probed(outermost, mine, StraightThrough()) or probed(outermost, mine)
    if map_ is None:
        return
    bias = ours.bias if bool(ours.bias.any()) else None
    found.coded.add(key)
    known = found.weighed[key] = Weighed("weight", bias=(bias, map_.bias))
    before = _judged(found, folds, key, known, ours.weight, map_.weight)
    if before is None:
        return
    # The bias that a module adds is its own; where it is the reference's up to rounding, it is that.
    own = map_.bias
    if bias is not None and torch.allclose(own, bias, rtol=1e-2, atol=1e-6 + 1e-3 * float(bias.abs().max())):
        own = bias
    found.forwards.append((outermost, _forward(Affine(before.weight.to(own.dtype), own))))


def _take_fused(found: Unrounding, folds: Folds, one: Projection, orders: Sequence[int]) -> None:
    """Take a module that computes several linear layers of the reference in one: each has its own rows in it."""
    if not all(map(is_linear, one.parts)):
        return
    weights = [weight_of(part) for part in one.parts]
    if len({part.shape[1] for part in weights}) > 1:
        return
    whole = nn.Linear(weights[0].shape[1], sum(map(len, weights)), bias=False, device="meta")
    whole.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    _, held = _holder([one.whole], "weight", whole.weight)
    map_ = Affine(held, held.new_zeros(())) if held is not None else probed(one.whole, whole)
    if map_ is None:
        return
    for heads in orders:
        owners = stacked([torch.full((len(part),), place) for place, part in enumerate(weights)], heads)
        if owners is None:
            continue
        rows = [owners == place for place in range(len(weights))]
        parts = [
            folds.before(path, part, map_.weight[own], from_codes=held is None)
            for path, part, own in zip(one.members, weights, rows, strict=True)
        ]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) and heads != orders[-1]:
            continue
        before = map_.weight.clone()
        for path, mine, own, part in zip(one.members, weights, rows, parts, strict=True):
            note = found.weighed[path] = Weighed("weight")
            if part is None:
                note.fault = mine, map_.weight[own]
                continue
            note.scaled, note.columns = part.fitted, part.columns
            found.same |= {(path, "weight")} if part.is_same else set()
            before[own] = part.weight.to(before.dtype)
        if not known:
            return
        found.is_exact &= all(part.is_exact for part in known)
        found.is_needed |= _is_rounded_off(before, map_.weight)
        if held is not None:
            found.weights.append((one.whole, "weight", before))
        else:
            found.forwards.append((one.whole, _forward(Affine(before, map_.bias))))
        return


def _take_table(found: Unrounding, folds: Folds, key: str, mine: nn.Embedding, theirs: nn.Module) -> None:
    """Take an embedding that stores codes; the reference's may scale its rows as well."""
    ours, held = table_of(mine, mine), table_of(theirs, mine)
    if ours is None or held is None:
        return
    known = found.weighed[key] = Weighed("weight")
    before = _judged(found, folds, key, known, ours, held)
    if before is None:
        return
    table = before.weight.to(held.dtype)

    def forward(numbers: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.nn.functional.embedding(numbers, table)

    found.forwards.append((theirs, forward))


def _judged(found: Unrounding, folds: Folds, key: str, known: Weighed, ours: Tensor, held: Tensor) -> Unrounded | None:
    """Return a weight that is made from codes as it was before, and note what is known of it."""
    before = folds.before(key, ours, held, from_codes=True)
    if before is None:
        known.fault = ours, held
        return None
    found.same |= {(key, known.name)} if before.is_same else set()
    known.scaled, known.columns = before.fitted, before.columns
    found.is_exact &= before.is_exact
    found.is_needed |= _is_rounded_off(before.weight, held)
    return before


def _is_rounded_off(before: Tensor, after: Tensor) -> bool:
    """Return whether a weight lost more than the rounding of its own dtype: else only its scales differ."""
    off = (after.double() - before.double()).abs().amax()
    return bool(off > _OWN_ROUNDING * torch.finfo(after.dtype).eps * after.abs().amax())


def _forward(affine: Affine) -> Callable[..., Tensor]:
    bias = affine.bias if bool(affine.bias.any()) else None

    def forward(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.nn.functional.linear(values.to(affine.weight.dtype), affine.weight, bias)

    return forward
