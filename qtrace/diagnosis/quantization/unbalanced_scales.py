"""Finds the modules that a change of scales forgot: a norm was divided by s, but not all behind it multiplied by s."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qtrace.diagnosis.quantization.effective_weight import float_values
from qtrace.diagnosis.quantization.weight_records import Unrounding, Weighed
from qtrace.diagnosis.runner import Runner
from qtrace.diagnosis.suspects import Suspect
from qtrace.diagnosis.tensor_differences import held_tensor
from qtrace.diagnosis.trial import Trial, Value

# Scales that are this close to one another move nothing.
_EVEN = 1e-3
_EQUAL = 1e-9
# Two scales that differ by this much are not one, rounded.
_OTHER = 0.02
_ROWS = 16


def unbalanced(runner: Runner, trial: Trial, weights: Unrounding) -> list[Suspect]:
    """Return the modules that read what a norm divides by s, but do not multiply it by s.

    Either they hold the reference's own weight where others take s up, or they were multiplied by what the norm's
    weight was divided by, where the norm does not divide by that: some multiply by 1 + weight.

    Args:
        runner: its models are only read, and their norms called.
        trial: any pass over the models; it tells who reads what a norm returns.
        weights: what is known of the candidate's weights. The norm is noted there with each module that is returned.
    """
    found: dict[str, Suspect] = {}
    calls = [call for call in trial.calls if call.side is None]
    for norm in calls:
        scales = _divisor(runner, norm.module)
        if scales is None:
            continue
        readers = {
            call.module: call
            for call in calls
            if any(_is_same(value, other) for value in call.arguments for other in norm.outputs)
        }
        modules = runner.models[0].modules
        taking = {path: set(_taking(modules[path], len(scales))) for path in readers}
        taking = {path: names for path, names in taking.items() if names}
        lacking = [path for path, names in taking.items() if {(path, name) for name in names} <= weights.same]
        mistaken = [path for path in taking if _is_mistaken(weights.weighed.get(path), scales)]
        if len(lacking) == len(taking):
            # Nobody takes the scales up: then it is the norm that is wrong.
            lacking = []
        for path in (*lacking, *mistaken):
            call = readers[path]
            value = next((value for value in call.outputs if not value.agrees), None)
            if value is not None and path not in found:
                found[path] = Suspect("introduces", path, call, value=value)
                known = weights.weighed.setdefault(path, Weighed(min(taking[path])))
                known.note(
                    lacks=norm.module if path in lacking else "", mistakes=norm.module if path in mistaken else ""
                )
    return list(found.values())


def _is_mistaken(known: Weighed | None, scales: Tensor) -> bool:
    """Return whether a weight's columns were multiplied by other scales than these."""
    if known is None or known.columns is None:
        return False
    off = (known.columns / scales.to(known.columns) - 1).abs()
    return bool((off > _OTHER).any())


def _is_same(value: Value, other: Value) -> bool:
    """Return whether two values are one, maybe in another shape: then they differ by the same errors."""
    if value.key == other.key:
        return True
    pairs = ((value.error, other.error), (value.rel_l2, other.rel_l2))
    return all(one is not None and two is not None and abs(one - two) <= _EQUAL * two for one, two in pairs)


def _divisor(runner: Runner, path: str) -> Tensor | None:
    """Return by what a norm of the candidate divides what the reference's returns; None for any other module.

    The weights do not tell it, so both are asked with random values.
    """
    mine = runner.models[0].modules[path]
    partners = runner.partners(path)[-1:]
    ours = float_values(held_tensor(mine, "weight"))
    theirs = float_values(held_tensor(partners[0], "weight")) if partners else None
    if ours is None or theirs is None or ours.dim() != 1 or ours.shape != theirs.shape or torch.equal(ours, theirs):
        return None
    values = torch.randn(_ROWS, len(ours), generator=torch.Generator().manual_seed(0)).to(ours)
    try:
        with torch.no_grad():
            one, other = (type(side).forward(side, values) for side in (mine, partners[0]))
    except Exception:
        # Any code may be the candidate's.
        return None
    if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape == values.shape):
        return None
    scales = (one * other).double().sum(0) / other.double().square().sum(0).clamp(min=1e-300)
    is_scaled = float((one.double() - other.double() * scales).norm()) <= _EVEN * float(one.double().norm())
    return scales if is_scaled and bool(((scales - 1).abs() > _EVEN).any()) else None


def _taking(module: nn.Module, width: int) -> Iterator[str]:
    """Yield the weights of a module that may be applied to values of this width."""
    for name, parameter in module._parameters.items():
        if isinstance(parameter, Tensor) and parameter.dim() >= 2 and _reads(module, parameter, width):
            yield name


def _reads(module: nn.Module, parameter: torch.Tensor, width: int) -> bool:
    # A module's first weight of the width is applied to its input; `down_proj` of experts may be of that width as well.
    first = next(p for p in module._parameters.values() if p is not None and p.dim() >= 2)
    return parameter is first and width in (parameter.shape[-1], parameter.shape[-2])
