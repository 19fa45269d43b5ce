"""NVIDIA's modelopt: TensorQuantizers beside the parameters; they hold the largest value, amax, and no scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qtrace.quantization.reading import Reading, holders, levels_of, own_weight

TOOLKIT = "modelopt"
_FLOATS = {(4, 3): "float8_e4m3fn", (5, 2): "float8_e5m2"}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers that are switched on."""
    for name, child in holders(module, aligned):
        bits = getattr(child, "_num_bits", None)
        if bits is None or getattr(child, "_disabled", False) or not getattr(child, "_if_quant", True):
            continue
        dtype = _dtype(bits, bool(getattr(child, "_unsigned", False)))
        levels = levels_of(dtype)
        most = getattr(child, "_amax", None)
        dynamic = bool(getattr(child, "_dynamic", False))
        axis = getattr(child, "_axis", None)
        scale = None if dynamic or levels is None else _empty() if most is None else most / levels[1]
        yield Reading(
            name=name,
            of=name.removesuffix("_quantizer") if name in _OUTER else "inside",
            dtype=dtype,
            scale=scale,
            levels=levels,
            symmetric=True,
            axis=axis if isinstance(axis, int) else None,
            weight=own_weight(module) if name == "weight_quantizer" else None,
            group=_group(getattr(child, "_block_sizes", None)),
        )


_OUTER = ("weight_quantizer", "input_quantizer", "output_quantizer")


def _dtype(bits: Any, unsigned: bool) -> str:
    if isinstance(bits, (tuple, list)):
        return _FLOATS.get(tuple(bits), f"float e{bits[0]}m{bits[1]}")
    return f"{'u' if unsigned else ''}int{bits}"


def _empty() -> torch.Tensor:
    return torch.empty(0)


def _group(sizes: Any) -> int | None:
    """Return the block size along the last axis, if values are quantized in blocks."""
    size = sizes.get(-1) if isinstance(sizes, dict) else None
    return size if isinstance(size, int) else None
