"""Reads the weight that a linear module computes with, whatever it stores: by what it makes of unit vectors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qtrace.engine.model import state_kept
from qtrace.numerics import NoValues, plain

# So many columns are asked for at once.
_COLUMNS = 1024
# A quantizer of four bits for the input keeps this much of a linear module's linearity.
_LINEAR = 0.2


@dataclass(frozen=True, slots=True)
class Affine:
    """The map y = x W^T + b that a module computes; `bias` is zero where it adds none."""

    weight: Tensor
    bias: Tensor

    def forward(self, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the map of some values, in the weight's dtype."""
        bias = self.bias if bool(self.bias.any()) else None
        return torch.nn.functional.linear(values.to(self.weight.dtype), self.weight, bias)


def float_values(tensor: Tensor | None) -> Tensor | None:
    """Return the values of a tensor as a plain floating one; None where it holds no such values."""
    if tensor is None or torch.nn.parameter.is_lazy(tensor):
        return None
    try:
        found = plain(tensor)
    except NoValues:
        return None
    return found if found.is_floating_point() and not found.is_meta else None


def linear_map(module: nn.Module) -> Affine | None:
    """Return the map of a module of the reference that is a linear layer, alone or as the sum of several.

    A layer with an adapter beside it says what it stands for by its `in_features` and `out_features`.
    """
    if is_linear(module):
        bias = bias_of(module)
        weight = weight_of(module)
        return Affine(weight, weight.new_zeros(len(weight)) if bias is None else bias)
    return probed(module, module) if _composed(module) is not None else None


def _composed(module: nn.Module) -> Tensor | None:
    """Return zeros of the shape of the weight that a sum of linear layers stands for; None for any other module."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    held = next(module.parameters(), None)
    if held is None or module._parameters or not held.is_floating_point():
        return None
    return held.new_zeros(rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def is_linear(module: nn.Module) -> bool:
    """Return whether a module of the reference is a linear layer: torch's own, or transformers' `Conv1D`."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and (isinstance(module, nn.Linear) or _is_turned(module))


def weight_of(reference: nn.Module) -> Tensor:
    """Return the weight of a linear layer of the reference as [out, in]."""
    weight = reference._parameters["weight"]
    assert weight is not None
    return weight.detach().t() if _is_turned(reference) else weight.detach()


def bias_of(reference: nn.Module) -> Tensor | None:
    """Return the bias of a linear layer of the reference."""
    bias = reference._parameters.get("bias")
    return None if bias is None else bias.detach()


def _is_turned(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def probed(
    module: nn.Module, reference: nn.Module, within: AbstractContextManager[object] | None = None
) -> Affine | None:
    """Return the map that a module of the candidate computes in place of a linear layer; None where it is not linear.

    The weight is read from the outputs for unit vectors, the bias from that for zeros, both in the reference's dtype.
    A quantizer of the module's input does not harm: it holds a unit vector exactly. That the module is linear is
    verified with random inputs, up to the rounding of four bits. The module's hooks do not run.

    Args:
        module: the candidate's; it is called, and afterwards holds what it held before.
        reference: the linear layer that it stands for, see `linear_map`.
        within: what is active during the calls.
    """
    weight = weight_of(reference) if is_linear(reference) else _composed(reference)
    if weight is None:
        return None
    count, columns = weight.shape
    made = torch.Generator().manual_seed(0)
    random = torch.randn(4, columns, generator=made).to(weight)
    try:
        with torch.no_grad(), state_kept(module), within or nullcontext():
            zero = _called(module, weight.new_zeros(1, columns))
            if not bool(torch.isfinite(zero).all()):
                # A scale taken from the values is zero there. What is odd in them cancels between two signs.
                zero = (_called(module, random[:1]) + _called(module, -random[:1])) / 2
            parts = []
            for first in range(0, columns, _COLUMNS):
                last = min(first + _COLUMNS, columns)
                units = weight.new_zeros(last - first, columns)
                units[torch.arange(last - first), torch.arange(first, last)] = 1
                parts.append(_called(module, units) - zero)
            answer = _called(module, random)
    except Exception:
        # Any code may be the candidate's.
        return None
    found = torch.cat(parts).t()
    if found.shape != (count, columns) or answer.shape != (4, count):
        return None
    expected = random.double() @ found.double().t() + zero.double()
    off = (answer.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return Affine(found, zero[0]) if float(off) <= _LINEAR else None


def is_convolution(module: nn.Module) -> bool:
    """Return whether a module of the reference is a convolution, and pads by zeros and numbers."""
    is_plain = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return is_plain and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def convolved(
    module: nn.Module, reference: nn.Module, within: AbstractContextManager[object] | None = None
) -> Affine | None:
    """Return the kernels and the bias by which a module of the candidate computes a convolution of the reference.

    They are read from the outputs for single ones: each at one place of the input of one output. None where it is no
    convolution with the reference's settings, up to the rounding of four bits.

    Args:
        module: the candidate's; it is called, without its hooks, and afterwards holds what it held before.
        reference: see `is_convolution`.
        within: what is active during the calls.
    """
    if not isinstance(reference, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or isinstance(reference.padding, str):
        return None
    weight = reference.weight.detach()
    # The first output whose input lies whole inside, and where that begins.
    starts = [-pad % step for pad, step in zip(reference.padding, reference.stride, strict=True)]
    output = [(pad + at) // step for pad, at, step in zip(reference.padding, starts, reference.stride, strict=True)]
    places = list(itertools.product(*(range(size) for size in weight.shape[2:])))
    size = [
        at + far * (wide - 1) + 1 for at, far, wide in zip(starts, reference.dilation, weight.shape[2:], strict=True)
    ]
    inside = weight.shape[1]
    made = torch.Generator().manual_seed(0)
    random = torch.randn(2, reference.in_channels, *(8 + side for side in size), generator=made).to(weight)
    found = torch.zeros_like(weight)
    outputs = len(weight) // reference.groups
    try:
        with torch.no_grad(), state_kept(module), within or nullcontext():
            run = type(module).forward
            zero = _at(run(module, weight.new_zeros(1, reference.in_channels, *size)), output)[0]
            for channel in range(inside):
                ones = weight.new_zeros(len(places), reference.in_channels, *size)
                for number, place in enumerate(places):
                    at = [s + far * k for s, far, k in zip(starts, reference.dilation, place, strict=True)]
                    # All groups at once: each output sees its own group's channels alone.
                    _at(ones[number : number + 1, channel::inside], at).fill_(1)
                answers = _at(run(module, ones), output) - zero
                found[:, channel] = answers.t().reshape(len(weight), *weight.shape[2:]).to(weight)
            answer = run(module, random)
    except Exception:
        # Any code may be the candidate's.
        return None
    expected = reference._conv_forward(random, found, zero.to(weight))
    if outputs * reference.groups != len(weight) or answer.shape != expected.shape:
        return None
    off = (answer.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    return Affine(found, zero.to(weight)) if float(off) <= _LINEAR else None


def _at(values: Tensor, place: Iterable[int]) -> Tensor:
    """Return the view of values [number, channel, ...] at one place of the axes behind the first two."""
    for at in place:
        values = values.select(2, at)
    return values


def table_of(module: nn.Module, reference: nn.Embedding) -> Tensor | None:
    """Return the row that a module returns for each number of an embedding of the reference, [numbers, width].

    None where it returns something else. The module is called, but not its hooks.
    """
    numbers = torch.arange(reference.num_embeddings, device=reference.weight.device)
    try:
        with torch.no_grad(), state_kept(module):
            found = type(module).forward(module, numbers.unsqueeze(0))
    except Exception:
        # Any code may be the candidate's.
        return None
    is_table = isinstance(found, Tensor) and found.is_floating_point()
    return found[0] if is_table and found.shape == (1, *reference.weight.shape) else None


def _called(module: nn.Module, rows: Tensor) -> Tensor:
    """Return what a module makes of rows, given as a batch of one sequence."""
    found = type(module).forward(module, rows.unsqueeze(0))
    if not isinstance(found, Tensor):
        raise TypeError("returns no tensor")
    return found.reshape(len(rows), -1).to(rows.dtype)
