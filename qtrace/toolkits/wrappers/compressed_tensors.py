"""compressed-tensors, the format of vLLM's llm-compressor: linear layers quantized by one of its schemes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import chosen, toolkit


def wrap(
    reference: nn.Module, samples: Sequence[Sample], scheme: str = "W8A8", keep: Sequence[str] = ("lm_head",)
) -> nn.Module:
    """Return `reference` with its linear layers fake-quantized in place, except those whose own name is in `keep`.

    `scheme` is one of the package's presets that needs no calibration of activations, such as W8A8 (activations
    rounded as they come), W8A16, W4A16 or FP8_DYNAMIC. Weights get the range that they have.

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
