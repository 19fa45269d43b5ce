"""compressed-tensors, the format of vLLM's llm-compressor: a scheme on each module, and scales by tensor name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import chosen, toolkit
from qtrace.toolkits.quantizer import Reading, levels_of, own_weight

TOOLKIT = "compressed-tensors"
MARKS = ("quantization_scheme",)
_FLOATS = {8: "float8_e4m3fn", 4: "float4_e2m1"}
_ARGUMENTS = {"weight": "weights", "input": "input_activations", "output": "output_activations"}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers of the scheme; none if it is switched off."""
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
        # A grouped tensor has a scale of two axes; so has a tensor rounded by channel.
        group=told.group_size if strategy in ("group", "tensor_group") else None,
        axis=0 if strategy == "channel" and of == "weight" else None,
        by_token=strategy == "token",
        weight=own_weight(module) if of == "weight" else None,
    )


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


def wrap(
    reference: nn.Module, samples: Sequence[Sample], scheme: str = "W8A8", keep: Sequence[str] = ("lm_head",)
) -> nn.Module:
    """Return `reference` with its linear layers fake-quantized in place, except those whose own name is in `keep`.

    `scheme` is one of the package's presets that needs no calibration of activations, such as W8A8 (activations
    rounded at each call), W8A16, W4A16 or FP8_DYNAMIC. A weight's range is that of its values.

    Raises:
        SourceError: compressed-tensors is missing.
        UsageError: no such scheme.
    """
    with toolkit("compressed_tensors", "compressed_tensors", "compressed-tensors"):
        from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
        from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
        from compressed_tensors.quantization.utils import calculate_qparams

        chosen("compressed_tensors", "scheme", scheme, list(PRESET_SCHEMES))
        config = QuantizationConfig(config_groups={scheme: ["Linear"]}, ignore=[f"re:.*{name}$" for name in keep])
        apply_quantization_config(reference, config)
        with torch.no_grad():
            module: Any
            for module in reference.modules():
                given = getattr(module, "quantization_scheme", None)
                if given is None or given.weights is None:
                    continue
                scale, zero = calculate_qparams(*_range(module.weight, given.weights.group_size), given.weights)
                _fill(module, "weight_scale", scale)
                _fill(module, "weight_zero_point", zero)
                module.quantization_status = QuantizationStatus.FROZEN
    return reference


def _range(weight: torch.Tensor, group_size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and largest element of each output channel, or of each group in it."""
    groups = weight.reshape(weight.shape[0], -1, group_size) if group_size and group_size > 0 else weight[:, None]
    return groups.amin(-1), groups.amax(-1)


def _fill(module: nn.Module, name: str, values: torch.Tensor) -> None:
    parameter = getattr(module, name, None)
    if parameter is not None:
        parameter.copy_(values.reshape(parameter.shape))
