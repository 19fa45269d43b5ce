"""compressed-tensors, as llm-compressor writes it: a scheme on the module, and scales by what they are of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qtrace.toolkits.quantizer import Reading, levels_of, own_weight

TOOLKIT = "compressed-tensors"
_FLOATS = {8: "float8_e4m3fn", 4: "float4_e2m1"}
_ARGUMENTS = {"weight": "weights", "input": "input_activations", "output": "output_activations"}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield what the scheme rounds; nothing where it is switched off."""
    scheme = getattr(module, "quantization_scheme", None)
    if scheme is None or not getattr(module, "quantization_enabled", True):
        return
    for of, name in _ARGUMENTS.items():
        told = getattr(scheme, name, None)
        if isinstance(getattr(told, "num_bits", None), int):
            yield _reading(module, of, told)


def _reading(module: torch.nn.Module, of: str, told: Any) -> Reading:
    kind, strategy = _word(told.type), _word(told.strategy)
    dtype = f"int{told.num_bits}" if kind == "int" else _FLOATS.get(told.num_bits, f"float{told.num_bits}")
    held = {**module._parameters, **module._buffers}
    dynamic = getattr(told, "dynamic", False) is not False
    scale, zero = held.get(f"{of}_scale"), held.get(f"{of}_zero_point")
    nested = held.get(f"{of}_global_scale")
    if scale is not None and nested is not None:
        scale = scale.to(torch.float32) / nested
    return Reading(
        name=of,
        of=of,
        dtype=dtype,
        scale=None if dynamic else torch.empty(0) if scale is None else scale.detach().to(torch.float32),
        zero_point=None if dynamic or zero is None else zero.detach().to(torch.float32),
        levels=levels_of(dtype),
        symmetric=bool(told.symmetric),
        # What is grouped has a scale of two axes; so has what is rounded by channel.
        group=told.group_size if strategy in ("group", "tensor_group") else None,
        axis=0 if strategy == "channel" and of == "weight" else None,
        by_token=strategy == "token",
        weight=own_weight(module) if of == "weight" else None,
    )


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))
