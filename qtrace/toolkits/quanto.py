"""Hugging Face's optimum-quanto: frozen weights with their scales; activations are rounded on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import calibrate, chosen, toolkit
from qtrace.toolkits.quantizer import Reading, dtype_name, levels_of

TOOLKIT = "optimum-quanto"
MARKS = ("_qtype", "weight_qtype", "activation_qtype")


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the weight's quantizer and, for a module with `activation_qtype`, those of input and output."""
    weight = module._parameters.get("weight")
    kind = getattr(weight, "_qtype", None)
    if weight is not None and hasattr(weight, "_scale") and kind is not None:
        yield _weight(weight, None)
    elif weight is not None and getattr(module, "weight_qtype", None) is not None:
        # Before it is frozen a weight is rounded at each call.
        with torch.no_grad():
            rounded = getattr(module, "qweight", None)
        if hasattr(rounded, "_scale"):
            yield _weight(rounded, weight)
    activation = getattr(module, "activation_qtype", None)
    if activation is None:
        return
    for of in ("input", "output"):
        scale = module._buffers.get(f"{of}_scale")
        # One hook quantizes the input, another the output; a module may have only one of them.
        if scale is not None and _is_hooked(getattr(module, "_quantize_hooks", {}).get(of)):
            dtype = dtype_name(activation.dtype)
            yield Reading(name=of, of=of, dtype=dtype, scale=scale, levels=levels_of(dtype), symmetric=True)


def _is_hooked(handle: Any) -> bool:
    """Return whether a hook is still there: calibration removes the hook of an output that the next module rounds."""
    hooks: Any = getattr(handle, "hooks_dict_ref", dict)()
    return hooks is not None and getattr(handle, "id", None) in hooks


def _weight(weight: Any, kept: torch.Tensor | None) -> Reading:
    kind, scale, shift = weight._qtype, weight._scale, getattr(weight, "_shift", None)
    dtype = dtype_name(kind.dtype) if kind.is_floating_point or kind.bits == 8 else f"int{kind.bits}"
    levels, zero = levels_of(dtype), None
    if shift is not None:
        # Packed levels count from 0; a shift is a zero point in the weight's unit, or in levels if it is an integer.
        levels, zero = (0.0, 2.0**kind.bits - 1), shift / scale if shift.is_floating_point() else shift
    group = getattr(weight, "_group_size", None)
    if group is not None and scale.numel() * group == weight.numel() and getattr(weight, "_axis", 0) == 0:
        # A row for each group of each channel.
        scale = scale.reshape(*weight.shape[:-1], -1)
        zero = None if zero is None else zero.reshape(scale.shape)
    return Reading(
        name="weight",
        of="weight",
        dtype=dtype,
        scale=scale,
        zero_point=zero,
        levels=levels,
        symmetric=shift is None,
        axis=None if group is not None else getattr(weight, "_axis", None),
        group=group,
        weight=kept,
        stored=weight if kept is None else None,
    )


TYPES = ("qint2", "qint4", "qint8", "qfloat8")


def wrap(
    reference: nn.Module, samples: Sequence[Sample], weights: str = "qint8", activations: str | None = None
) -> nn.Module:
    """Return `reference` with quanto's layers in place of its own, weights frozen.

    With `activations` the model is calibrated on the samples first. The result cannot be deep-copied.

    Raises:
        SourceError: optimum-quanto is missing.
        UsageError: no such type.
    """
    for given in (weights, activations):
        if given is not None:
            chosen("quanto", "type", given, TYPES)
    with toolkit("quanto", "optimum.quanto", "optimum-quanto"):
        from optimum import quanto

        types = [getattr(quanto, given) if given is not None else None for given in (weights, activations)]
        quanto.quantize(reference, weights=types[0], activations=types[1])
        if activations is not None:
            with quanto.Calibration():
                calibrate(reference, samples)
        quanto.freeze(reference)
    return reference.train(reference.training)
