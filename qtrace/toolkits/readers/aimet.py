"""AIMET: quantizers in lists and a dict beside the parameters; each keeps the ends of its range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qtrace.toolkits.quantizer import Reading, channel_axis, integer_name, own_weight

TOOLKIT = "aimet"


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers of parameters, inputs and outputs."""
    parameters = module._modules.get("param_quantizers")
    for name, quantizer in (parameters or torch.nn.Module())._modules.items():
        if _quantizes(quantizer):
            yield _reading(name, "weight", quantizer, parameter=name, weight=own_weight(module, name))
    for of in ("input", "output"):
        held = module._modules.get(f"{of}_quantizers")
        for place, quantizer in (held or torch.nn.Module())._modules.items():
            if _quantizes(quantizer):
                # Of several inputs only the first is compared with what a quantizer has room for.
                yield _reading(f"{of}_quantizers.{place}", of if place == "0" else "inside", quantizer)


def _quantizes(quantizer: Any) -> bool:
    return hasattr(quantizer, "qmin") and hasattr(quantizer, "get_scale")


def _reading(
    name: str, of: str, quantizer: Any, *, parameter: str = "weight", weight: torch.Tensor | None = None
) -> Reading:
    scale, offset = quantizer.get_scale(), quantizer.get_offset()
    low, high = float(quantizer.qmin), float(quantizer.qmax)
    symmetric = getattr(quantizer, "symmetric", None)
    return Reading(
        name=name,
        of=of,
        dtype=integer_name(low, high),
        scale=torch.empty(0) if scale is None else scale.detach(),
        # x is rounded to scale * (level + offset).
        zero_point=None if offset is None else 0 - offset.detach(),
        levels=(low, high),
        symmetric=symmetric if isinstance(symmetric, bool) else None,
        axis=None if scale is None else channel_axis(scale),
        parameter=parameter,
        weight=weight,
    )
