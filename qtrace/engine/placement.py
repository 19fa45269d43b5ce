"""Finds dtypes and devices by name, and moves models and samples there."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import nn

from qtrace.engine.samples import Sample, map_tensors
from qtrace.errors import SourceError, UsageError, did_you_mean

# Rotary frequencies: transformers keeps them in float32 when it loads a checkpoint in another dtype, and a
# model whose frequencies were rounded is wrong at late positions.
KEPT_BUFFERS = ("inv_freq", "original_inv_freq")

FLOATING = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def floating_dtype(name: str, where: str) -> torch.dtype:
    """Return the dtype of a name such as "bfloat16"; `where` begins the error message.

    Raises:
        UsageError: no floating-point dtype that a model can be cast to.
    """
    if name not in FLOATING:
        raise UsageError(f"{where}: no dtype {name} for a model; {did_you_mean(str(name), FLOATING)}")
    return FLOATING[name]


def check_device(name: str | None) -> None:
    """Raise for a device that torch does not know or this machine does not have.

    Raises:
        UsageError: the device and torch's reason.
    """
    if name is None:
        return
    try:
        torch.empty(1, device=name).fill_(0)
    except Exception as error:  # each backend raises its own type
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(f"device {name} cannot be used here ({reason}); cpu always can") from error


def cast(model: nn.Module, dtype: torch.dtype, keep: Collection[str] = KEPT_BUFFERS) -> nn.Module:
    """Cast floating-point parameters and buffers in place, except the buffers whose own name is in `keep`."""
    kept = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in keep
    ]
    model.to(dtype)
    for module, name, buffer in kept:
        setattr(module, name, buffer)
    return model


def place_model(model: nn.Module, device: str | None, dtype: str | None) -> nn.Module:
    """Return the model on a device and cast to a dtype, where these are given.

    Raises:
        SourceError: the model cannot be moved or cast (some quantized ones cannot).
    """
    if device is None and dtype is None:
        return model
    try:
        model = model.to(device) if device else model
        return cast(model, floating_dtype(dtype, "dtype")) if dtype else model
    except UsageError:
        raise
    except Exception as error:  # toolkits raise their own types from `to`
        target = " ".join(part for part in (device, dtype) if part)
        raise SourceError(f"{type(model).__name__} cannot be moved to {target}: {error}") from error


def place_sample(sample: Sample, device: str | None, dtype: str | None) -> Sample:
    """Return the sample's tensors on a device; the floating-point ones cast to a dtype, as the models are."""
    target = floating_dtype(dtype, "dtype") if dtype else None

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=device, dtype=target if tensor.is_floating_point() else None)

    return map_tensors(move, sample) if device or target else sample


def deep_copy(reference: nn.Module) -> nn.Module:
    """Return a copy of the reference that shares no tensor with it, to make a candidate of.

    Raises:
        SourceError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(reference)
    except Exception as error:  # the model's attributes may raise any type
        reason = " ".join(str(error).split())
        raise SourceError(
            f"the reference {type(reference).__name__} cannot be deep-copied for a candidate to wrap "
            f"({reason}); give a candidate callable without the parameter reference, which builds its own"
        ) from error
