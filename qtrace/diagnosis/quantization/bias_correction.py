"""Finds biases that were corrected for the rounding before them: they differ, and so bring the output nearer.

A toolkit may take from a bias what the rounding adds to the mean of the output (bias correction: Nagel et al.,
Data-Free Quantization Through Weight Equalization and Bias Correction, 2019). Such a bias belongs to the rounded model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qtrace.diagnosis.quantization.effective_weight import Affine
from qtrace.diagnosis.quantization.weight_records import Unrounding
from qtrace.diagnosis.runner import Runner
from qtrace.engine.events import Bound, Call
from qtrace.engine.forcing import Forcing
from qtrace.tree import tensors

# What a correction leaves, at most, of the mean of an output's error.
_LEFT = 0.9
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


@dataclass(frozen=True, slots=True)
class Bias:
    """A bias of the candidate's that is not the reference's, in the module `holder`; `path` is the reference's."""

    path: str
    holder: nn.Module
    ours: Tensor
    theirs: Tensor


class _Means:
    """A listener that adds up the outputs of modules by channel; `axes` holds their channel axes by reference path."""

    def __init__(self, axes: dict[str, int]) -> None:
        self._axes = axes
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def of(self, path: str) -> Tensor | None:
        """Return the mean over all calls and places; None where the module did not run."""
        found = self._sums.get(path)
        return None if found is None else found[0] / found[1]

    def enter(self, call: Call, module: nn.Module, arguments: Bound) -> None:
        """Nothing is to be done."""

    def leave(self, call: Call, module: nn.Module, value: Any) -> None:
        """Take in one output."""
        axis = self._axes.get(call.key or "")
        found = tensors(value)
        if axis is None or len(found) != 1 or not found[0][1].is_floating_point() or found[0][1].dim() < 2:
            return
        rows = found[0][1].detach().double().movedim(axis, -1).flatten(0, -2)
        # A wrapper and the module in it return the same.
        total, count = self._sums.get(call.key or "", (rows.new_zeros(rows.shape[-1]), 0))
        if total.shape == rows.shape[1:]:
            self._sums[call.key or ""] = total + rows.sum(0), count + len(rows)


def take_corrected(found: Unrounding, runner: Runner) -> None:
    """Put the reference's bias in the place of each that makes up for the rounding before it, beside a sound weight."""
    biases = []
    for key in dict.fromkeys(runner.plan.candidate_keys.values()):
        mine, partners = runner.models[0].modules[key], runner.partners(key)
        ours, known = mine._parameters.get("bias"), found.weighed.get(key)
        if ours is None or ours.dim() != 1 or (known is not None and known.fault is not None):
            continue
        holder = next((partner for partner in partners if partner._parameters.get("bias") is not None), None)
        theirs: Tensor | None = None if holder is None else holder._parameters["bias"]
        if known is not None and known.before is not None and known.place is not None:
            holder, theirs = known.place.module, known.place.bias
        if holder is None or theirs is None or ours.shape != theirs.shape or not theirs.is_floating_point():
            continue
        if not torch.equal(ours, theirs):
            biases.append(Bias(key, holder, ours.detach(), theirs.detach()))
    for one in corrections(runner, biases):
        known, values = found.weighed.get(one.path), one.ours.to(one.theirs.dtype)
        found.is_needed = True
        if known is None or known.before is None:
            found.weights.append((one.holder, "bias", values))
            continue
        known.bias, known._said = (one.ours, one.ours), None
        found.forwards = [other for other in found.forwards if other[0] is not one.holder]
        found.forwards.append((one.holder, Affine(known.before.to(values.dtype), values).forward))


def corrections(runner: Runner, biases: Sequence[Bias]) -> list[Bias]:
    """Return the biases with which the mean of the error at the module's output is smaller than with the reference's.

    Some toolkits correct what the module itself rounds off, others what has accumulated before it.
    """
    if not biases:
        return []
    modules = runner.models[0].modules
    axes = {one.path: -1 if isinstance(modules[one.path], _CHANNELS_LAST) else 1 for one in biases}
    accumulated, own = (_Means(axes), _Means(axes)), (_Means(axes), _Means(axes))
    runner.pass_without_forcing(accumulated)
    boundaries = frozenset(runner.plan.reference_keys)
    runner.run(Forcing(entries=boundaries, exits=boundaries - {""}, harmless=runner.harmless), own)
    return [one for one in biases if any(_corrects(one, *both) for both in (accumulated, own))]


def _corrects(bias: Bias, mine: _Means, theirs: _Means) -> bool:
    reference, candidate = mine.of(bias.path), theirs.of(bias.path)
    change = bias.theirs.double() - bias.ours.double()
    if reference is None or candidate is None or not reference.shape == candidate.shape == change.shape:
        return False
    off = candidate - reference
    return bool(off.norm() <= _LEFT * (off - change).norm())
