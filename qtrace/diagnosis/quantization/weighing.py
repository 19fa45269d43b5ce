"""Weighs each weight of the candidate against the reference's: how it was before it was rounded, or how it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median_high
from typing import Any

import torch
from torch import Tensor, nn

from qtrace.diagnosis.projections import Projection, all_projections, head_counts, row_orders, stacked
from qtrace.diagnosis.quantization.effective_weight import (
    Affine,
    bias_of,
    convolved,
    float_values,
    is_convolution,
    is_linear,
    linear_map,
    probed,
    table_of,
    weight_of,
)
from qtrace.diagnosis.quantization.folded_scales import Folds, Unrounded
from qtrace.diagnosis.quantization.paired_transforms import Weights, joined
from qtrace.diagnosis.quantization.straight_through import StraightThrough
from qtrace.diagnosis.quantization.weight_records import Place, Unrounding, Weighed
from qtrace.diagnosis.runner import Runner
from qtrace.numerics.quantized import is_rounded

# Of weights of fewer elements it cannot be told whether they are rounded, except by the size of the difference.
_FEWEST = 256
# Computing a weight in another order moves it by so many times the precision of its dtype.
_OWN_ROUNDING = 16
# A bias is another one, transformed, up to this.
_BIAS = 0.25
# So many weights must be noisy for noise to be the rule, and none of them so many times as noisy as the others.
_FEWEST_NOISY = 3
_MOST_NOISE = 2.0
_HALF = (torch.bfloat16, torch.float16)


def weighed(runner: Runner) -> Unrounding:
    """Return what is known of the candidate's weights, and how to take the rounding out of them; nothing is changed.

    Each weight of the candidate is held against that of the reference's module with which it is aligned. A module that
    stores codes, and no weight of the reference's shape, is asked with unit vectors what it computes.
    """
    modules = runner.models[0].modules
    keys = dict.fromkeys(runner.plan.candidate_keys.values())
    folds = Folds({key: (modules[key], runner.partners(key)) for key in keys})
    found = Unrounding()
    small: list[_Small] = []
    seen: set[tuple[int, str]] = set()
    for key in keys:
        for partners in _copies(runner, key):
            _take_module(found, folds, key, modules[key], partners, seen, small)
    for one in all_projections(runner):
        if not one.is_split:
            _take_fused(found, folds, one, row_orders(runner, one))
    _take_white(found)
    _join(found, runner)
    _take_small(found, small)
    known = [*found.asked, *(module for module, _ in found.forwards), *(module for module, *_ in found.weights)]
    found.is_partial = _has_other_codes(runner.models[1].root, {id(m) for module in known for m in module.modules()})
    return found


def _copies(runner: Runner, key: str) -> list[list[nn.Module]]:
    """Return the candidate's modules for one of the reference's: each with those inside it, where it was copied."""
    found: dict[str, list[nn.Module]] = {}
    for path in runner.answering(key):
        outer = next((other for other in found if path.startswith(f"{other}.")), path)
        found.setdefault(outer, []).append(runner.models[1].modules[path])
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Small:
    """A weight that is too small to show what differs in it: what is put in its place where it is right."""

    key: str
    name: str
    ours: Tensor
    held: Tensor
    weights: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)
    maps: list[tuple[nn.Module, Callable[..., Tensor]]] = field(default_factory=list)
    forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = field(default_factory=list)


def _small(
    found: Unrounding, key: str, name: str, mine: nn.Module, partners: Sequence[nn.Module], ours: Tensor
) -> _Small | None:
    """Return a small weight that differs, whether it is held or made from codes; None where there is none."""
    holder, held = _holder(partners, name, ours)
    if holder is not None and held is not None:
        return None if torch.equal(held, ours) else _Small(key, name, ours, held, weights=[(holder, name, ours)])
    if name != "weight" or not is_linear(mine) or _is_held(partners, ours):
        return None
    map_, bias = probed(partners[0], mine, StraightThrough()) or probed(partners[0], mine), bias_of(mine)
    if map_ is None:
        return None
    right = Affine(weight_of(mine), _own_bias(bias, map_.bias).to(ours.dtype))
    found.asked.append(there := partners[0])
    return _Small(key, name, right.weight, map_.weight, [], [(there, map_.forward)], [(there, right.forward)])


def _take_module(
    found: Unrounding,
    folds: Folds,
    key: str,
    mine: nn.Module,
    partners: list[nn.Module],
    seen: set[tuple[int, str]],
    small: list[_Small],
) -> None:
    """Take the weights of one module of the reference's, as its partners in the candidate have them."""
    for name, parameter in mine._parameters.items():
        ours = float_values(parameter)
        if ours is None or not ours.dim():
            continue
        if ours.numel() < _FEWEST or ours.dim() == 1:
            one = _small(found, key, name, mine, partners, ours)
            small += [] if one is None else [one]
            continue
        holder, held = _holder(partners, name, ours)
        if holder is None:
            # A wrapper may compute with a weight that a module inside holds, without calling that module.
            inside = [module for partner in partners for module in partner.modules()]
            holder, held = _holder(inside, name, ours)
            if held is not None and torch.equal(held, ours):
                holder = held = None
        if holder is not None and held is not None:
            if torch.equal(held, ours):
                found.same.add((key, name))
            elif (id(holder), name) not in seen:
                seen.add((id(holder), name))
                _take_weight(found, folds, key, (holder, name), ours, held)
        elif name == "weight" and is_linear(mine) and not _is_held(partners, ours):
            _take_linear(found, folds, key, mine, partners)
        elif name == "weight" and is_convolution(mine) and not _is_held(partners, ours):
            _take_convolution(found, folds, key, mine, partners[0])
        elif name == "weight" and isinstance(mine, nn.Embedding) and not _is_held(partners, ours):
            _take_table(found, folds, key, mine, partners[0])
    if not mine._parameters and not is_linear(mine):
        _take_linear(found, folds, key, mine, partners)


def _has_other_codes(root: nn.Module, known: set[int]) -> bool:
    """Return whether a module that is not known stores codes: integers of few bits, packed ones, or narrow floats."""
    for module in root.modules():
        if id(module) not in known:
            for held in (*module._parameters.values(), *module._buffers.values()):
                if held is not None and held.numel() >= _FEWEST and not held.is_complex():
                    is_packed = held.dtype is torch.int32 and held.dim() >= 2
                    if is_packed or (held.itemsize == 1 and held.dtype is not torch.bool):
                        return True
    return False


def _take_small(found: Unrounding, small: list[_Small]) -> None:
    """Take the weights that are too small to show what differs in them, where that is no more than in the others."""
    noise = found.noises
    usual = _MOST_NOISE * median_high(noise) if noise else 0.0
    for one in small:
        is_cast = any(torch.equal(one.ours.to(dtype).to(one.held.dtype), one.held) for dtype in _HALF)
        off = _noise(one.ours, one.held)
        if is_cast or (off <= usual and one.ours.dim() > 1):
            if one.ours.dim() > 1:
                found.weighed.setdefault(one.key, Weighed(one.name, noise=off))
            found.same.add((one.key, one.name))
            found.weights += one.weights
            found.maps += one.maps
            found.forwards += one.forwards
            found.is_needed = True


def _join(found: Unrounding, runner: Runner) -> None:
    """Take the pairs of layers of which one takes in what the other takes out again."""
    unsure = {path: known for path, known in found.weighed.items() if known.place is not None and known.is_unsure}
    others = [known.noise for known in found.weighed.values() if not known.is_unsure and known.noise > 0]
    noise = median_high(others) if others else 0.0
    for first in list(unsure):
        for second in list(unsure):
            one, other = unsure.get(first), unsure.get(second)
            if first == second or one is None or other is None or _layer(first) != _layer(second):
                continue
            if one.place is None or other.place is None:
                continue
            container = first.rpartition(".")[0]
            done = joined(_weights(one.place), _weights(other.place), head_counts(runner, container), noise)
            if done is None:
                continue
            mine = runner.models[0].modules[first]._parameters.get("bias")
            bias = None if mine is None else done.turn.to(mine) @ mine.detach()
            _put(found, one, done.first, bias)
            _put(found, other, done.second, None)
            one.paired = f"{done.words} of its outputs, for {second} to undo"
            other.paired = f"{done.words} of its inputs undone, as {first} has it"
            del unsure[first], unsure[second]


def _weights(place: Place) -> Weights:
    return Weights(place.reference, place.candidate, place.from_codes)


def _layer(path: str) -> str:
    """Return a path up to its last number."""
    parts = path.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[: last + 1])


def _put(found: Unrounding, known: Weighed, weight: Tensor, bias: Tensor | None) -> None:
    """Put an unrounded weight in the place of another; and a bias, where it is the candidate's up to rounding."""
    place = known.place
    assert place is not None
    known.fault, known.scaled, known.unsure, known._said = None, "", False, None
    found.is_needed = True
    is_own = bias is not None and place.bias is not None and _noise(bias, place.bias) <= _BIAS
    found.weights = [one for one in found.weights if not (one[0] is place.module and one[1] in ("weight", "bias"))]
    found.forwards = [one for one in found.forwards if one[0] is not place.module]
    values = weight.to(place.candidate.dtype)
    if is_own and known.bias is not None and bias is not None:
        known.bias = bias, bias
    if place.from_codes:
        own = place.bias if not is_own or bias is None else bias
        assert own is not None
        found.forwards.append((place.module, Affine(values, own.to(values.dtype)).forward))
        return
    found.weights.append((place.module, "weight", values))
    if is_own and bias is not None:
        found.weights.append((place.module, "bias", bias))


def _take_white(found: Unrounding) -> None:
    """Take the weights that differ by white noise as all others do: a rotation that is undone hides a rounding's form.

    One noisy weight alone is not quantized, but another one.
    """
    white = {}
    for path, known in found.weighed.items():
        place = known.place
        if known.fault is None or place is None or place.from_codes:
            continue
        if is_rounded(place.reference, place.candidate, from_codes=True):
            white[path] = _noise(place.reference, place.candidate)
    noise = [*found.noises, *white.values()]
    for path, size in white.items():
        if len(noise) >= _FEWEST_NOISY and size <= _MOST_NOISE * median_high(noise):
            known = found.weighed[path]
            assert known.place is not None
            _put(found, known, known.place.reference, None)


def _noise(before: Tensor, after: Tensor) -> float:
    """Return the norm of a difference over that of the tensor."""
    return float((after.double() - before.double()).norm() / before.double().norm().clamp(min=1e-300))


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
    if place[1] == "weight" and ours.dim() == 2:
        known.place = Place(place[0], False, folds.nearest(key, ours, held)[1], held, place[0]._parameters.get("bias"))
    known.noise = _noise(ours if before is None else before.weight, held)
    if before is None:
        known.name, known.fault = place[1], (ours, held)
        return
    found.same |= {(key, place[1])} if before.is_same else set()
    known.scaled = known.scaled or before.fitted
    known.columns, known.unsure = before.columns, not before.is_exact
    found.weights.append((*place, before.weight.to(held.dtype)))
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
    found.asked.append(outermost)
    found.coded.add(key)
    known = found.weighed[key] = Weighed("weight", bias=(bias, map_.bias))
    nearest = folds.nearest(key, ours.weight, map_.weight)[1]
    known.place = Place(outermost, True, nearest, map_.weight, map_.bias)
    before = _judged(found, folds, key, known, ours.weight, map_.weight)
    known.noise = _noise(ours.weight if before is None else before.weight, map_.weight)
    if before is None:
        return
    known.before = before.weight
    own = _own_bias(bias, map_.bias)
    found.maps.append((outermost, map_.forward))
    found.forwards.append((outermost, Affine(before.weight.to(own.dtype), own).forward))


def _take_convolution(found: Unrounding, folds: Folds, key: str, mine: nn.Module, theirs: nn.Module) -> None:
    """Take a convolution that stores codes."""
    map_ = convolved(theirs, mine, StraightThrough()) or convolved(theirs, mine)
    weight, bias = mine._parameters["weight"], mine._parameters.get("bias")
    if map_ is None or weight is None:
        return
    ours = None if bias is None or not bool(bias.any()) else bias.detach()
    found.asked.append(theirs)
    found.coded.add(key)
    known = found.weighed[key] = Weighed("weight", bias=(ours, map_.bias))
    before = _judged(found, folds, key, known, weight.detach(), map_.weight)
    known.noise = _noise(weight if before is None else before.weight, map_.weight)
    if before is None:
        return
    found.maps.append((theirs, _convolution(mine, map_.weight, map_.bias)))
    found.forwards.append((theirs, _convolution(mine, before.weight.to(map_.weight), _own_bias(ours, map_.bias))))


def _convolution(mine: nn.Module, kernels: Tensor, bias: Tensor) -> Callable[..., Tensor]:
    def forward(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = mine._conv_forward(values.to(kernels.dtype), kernels, bias)  # type: ignore[operator]
        return out

    return forward


def _own_bias(reference: Tensor | None, candidate: Tensor) -> Tensor:
    """Return the bias that a module adds: its own, or the reference's where it is that up to rounding."""
    if reference is None:
        return candidate
    least = 1e-6 + 1e-3 * float(reference.abs().max())
    return reference if torch.allclose(candidate, reference, rtol=1e-2, atol=least) else candidate


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
    found.asked.append(one.whole)
    for count in orders:
        owners = stacked([torch.full((len(part),), place) for place, part in enumerate(weights)], count)
        if owners is None:
            continue
        rows = [owners == place for place in range(len(weights))]
        parts = [
            folds.before(path, part, map_.weight[own], from_codes=held is None)
            for path, part, own in zip(one.members, weights, rows, strict=True)
        ]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) and count != orders[-1]:
            continue
        before = map_.weight.clone()
        for path, mine, own, part in zip(one.members, weights, rows, parts, strict=True):
            note = found.weighed[path] = Weighed("weight")
            if part is None:
                note.fault = mine, map_.weight[own]
                continue
            note.scaled, note.columns, note.unsure = part.fitted, part.columns, not part.is_exact
            found.same |= {(path, "weight")} if part.is_same else set()
            before[own] = part.weight.to(before.dtype)
        if not known:
            return
        found.is_needed |= _is_rounded_off(before, map_.weight)
        if held is not None:
            found.weights.append((one.whole, "weight", before))
        else:
            found.forwards.append((one.whole, Affine(before, map_.bias).forward))
        return


def _take_table(found: Unrounding, folds: Folds, key: str, mine: nn.Embedding, theirs: nn.Module) -> None:
    """Take an embedding that stores codes; the reference's may scale its rows as well."""
    ours, held = table_of(mine, mine), table_of(theirs, mine)
    if ours is None or held is None:
        return
    known = found.weighed[key] = Weighed("weight")
    found.asked.append(theirs)
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
    known.scaled, known.columns, known.unsure = before.fitted, before.columns, not before.is_exact
    found.is_needed |= _is_rounded_off(before.weight, held)
    return before


def _is_rounded_off(before: Tensor, after: Tensor) -> bool:
    """Return whether a weight lost more than the rounding of its own dtype: else only its scales differ."""
    off = (after.double() - before.double()).abs().amax()
    return bool(off > _OWN_ROUNDING * torch.finfo(after.dtype).eps * after.abs().amax())
