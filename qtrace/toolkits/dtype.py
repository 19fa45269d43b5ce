"""Casts the same model to another floating-point dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.placement import KEPT_BUFFERS, cast, floating_dtype
from qtrace.engine.samples import Sample, map_tensors


def wrap(
    reference: nn.Module,
    samples: Sequence[Sample],
    dtype: str = "bfloat16",
    keep: Sequence[str] = KEPT_BUFFERS,
) -> nn.Module:
    """Return `reference` with parameters and buffers cast to `dtype` (float16, bfloat16, float32, float64).

    Buffers whose own name is in `keep` stay as they are: by default the rotary frequencies, as when
    transformers loads a checkpoint in that dtype; `keep=[]` does what a plain `model.to(dtype)` does. Where
    the samples hold floating-point tensors, the model casts such arguments itself as it is called, so that
    one sample fits both.

    Raises:
        UsageError: no such dtype.
    """
    target = floating_dtype(dtype, "the wrapper dtype")
    candidate = cast(reference, target, keep)
    if any(_has_floating(sample) for sample in samples):
        candidate.register_forward_pre_hook(_Cast(target), with_kwargs=True)
    return candidate


class _Cast:
    """A forward pre-hook that casts floating-point arguments; an object, so that a copied model keeps it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cast = map_tensors(self._cast, Sample(args, kwargs))
        return cast.args, cast.kwargs

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _has_floating(sample: Sample) -> bool:
    found: list[bool] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.is_floating_point())
        return tensor

    map_tensors(note, sample)
    return any(found)
