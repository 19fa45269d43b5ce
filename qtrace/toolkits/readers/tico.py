"""TICO: observers beside the wrapped module, which fake-quantize once their wrapper is in the mode QUANT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qtrace.toolkits.quantizer import Reading, dtype_name, holders, own_weight

TOOLKIT = "tico"
_OF = {"weight": "weight", "act_in": "input", "act_out": "output"}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the observers of a wrapper that quantizes."""
    if getattr(getattr(module, "_mode", None), "name", "") != "QUANT":
        return
    for _, child in holders(module, aligned):
        dtype: Any = getattr(child, "dtype", None)
        scale, low, high = (child._buffers.get(key) for key in ("_cached_scale", "min_val", "max_val"))
        # The identity observer has the scale 1 and rounds nothing.
        identity = type(child).__name__ == "IdentityObserver"
        if scale is None or not hasattr(dtype, "qmin") or identity or not getattr(child, "fake_quant_enabled", True):
            continue
        scheme = getattr(child, "qscheme", None)
        loaded = getattr(child, "_qparams_locked", False)
        name = str(getattr(child, "name", ""))
        yield Reading(
            name=name,
            of=_OF.get(name, "inside"),
            dtype=dtype_name(dtype),
            scale=scale,
            zero_point=getattr(child, "_cached_zp", None),
            levels=(float(dtype.qmin), float(dtype.qmax)),
            symmetric=scheme.is_symmetric() if scheme is not None else None,
            axis=getattr(child, "channel_axis", None),
            weight=own_weight(module) if name == "weight" else None,
            observed=None if loaded or low is None or high is None else (low, high),
        )
