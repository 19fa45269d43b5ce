"""Finds the modules that a change of scales forgot: a norm was divided by s, but not all behind it multiplied by s."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qtrace.diagnosis.quantization.effective_weight import float_values
from qtrace.diagnosis.quantization.unrounding import Unrounding, Weighed
from qtrace.diagnosis.runner import Runner
from qtrace.diagnosis.suspects import Suspect
from qtrace.diagnosis.tensor_differences import held_tensor
from qtrace.diagnosis.trial import CallRecord, Trial, Value

# Scales that are this close to one another move nothing.
_EVEN = 1e-3
_EQUAL = 1e-9


def unbalanced(runner: Runner, trial: Trial, weights: Unrounding) -> list[Suspect]:
    """Return the modules that read what a norm divided by s, with the reference's own weight, where others take s up.

    Args:
        runner: its models are only read.
        trial: any pass over the models; it tells who reads what a norm returns.
        weights: what is known of the candidate's weights. The norm is noted there with each module that is returned.
    """
    found: dict[str, Suspect] = {}
    calls = [call for call in trial.calls if call.side is None]
    for norm in calls:
        width = _divided(runner, norm.module)
        if width is None:
            continue
        readers = {
            call.module: call
            for call in calls
            if any(_is_same(value, other) for value in call.arguments for other in norm.outputs)
        }
        taking = {path: set(_taking(runner.models[0].modules[path], width)) for path in readers}
        lacking = [path for path, names in taking.items() if names and {(path, name) for name in names} <= weights.same]
        if len(lacking) == sum(map(bool, taking.values())):
            # Nobody takes the scales up: then it is the norm that is wrong.
            continue
        for path in lacking:
            call = readers[path]
            value = next((value for value in call.outputs if not value.agrees), None)
            if value is not None and path not in found:
                found[path] = _suspect(call)
                name = min(taking[path])
                weights.weighed.setdefault(path, Weighed(name)).lacks = norm.module
    return list(found.values())


def _is_same(value: Value, other: Value) -> bool:
    """Return whether two values are one, maybe in another shape: then they differ by the same errors."""
    if value.key == other.key:
        return True
    pairs = ((value.error, other.error), (value.rel_l2, other.rel_l2))
    return all(one is not None and two is not None and abs(one - two) <= _EQUAL * two for one, two in pairs)


def _suspect(call: CallRecord) -> Suspect:
    value = next(value for value in call.outputs if not value.agrees)
    return Suspect("introduces", call.module, call, value=value)


def _divided(runner: Runner, path: str) -> int | None:
    """Return the width of a norm whose weight was divided by other numbers than one; None for any other module."""
    mine = held_tensor(runner.models[0].modules[path], "weight")
    partners = runner.partners(path)[-1:]
    ours, theirs = float_values(mine), float_values(held_tensor(partners[0], "weight")) if partners else None
    if ours is None or theirs is None or ours.dim() != 1 or ours.shape != theirs.shape:
        return None
    is_even = bool(((theirs - ours).abs() <= _EVEN * ours.abs()).all())
    return None if is_even else len(ours)


def _taking(module: nn.Module, width: int) -> Iterator[str]:
    """Yield the weights of a module that may be applied to values of this width."""
    for name, parameter in module._parameters.items():
        if isinstance(parameter, Tensor) and parameter.dim() >= 2 and _reads(module, parameter, width):
            yield name


def _reads(module: nn.Module, parameter: torch.Tensor, width: int) -> bool:
    # A module's first weight of the width is applied to its input; `down_proj` of experts may be of that width as well.
    first = next(p for p in module._parameters.values() if p is not None and p.dim() >= 2)
    return parameter is first and width in (parameter.shape[-1], parameter.shape[-2])
