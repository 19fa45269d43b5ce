"""NVIDIA's modelopt: fake quantization inside the layers, calibrated on the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import calibrate, chosen, toolkit


def wrap(reference: nn.Module, samples: Sequence[Sample], config: str = "INT8_DEFAULT_CFG") -> nn.Module:
    """Return `reference` with modelopt's quantizers in it; `config` is one of its configurations by name.

    Raises:
        SourceError: nvidia-modelopt is missing.
        UsageError: no such configuration.
    """
    with toolkit("modelopt", "modelopt", "nvidia-modelopt"):
        import modelopt.torch.quantization as mtq

        chosen("modelopt", "config", config, [name for name in dir(mtq) if name.endswith("_CFG")])
        quantized: nn.Module = mtq.quantize(
            reference, getattr(mtq, config), forward_loop=lambda model: calibrate(model, samples)
        )
    _free_attention(quantized)
    return quantized


def _free_attention(model: nn.Module) -> None:
    """Make attention torch's own again where none of its quantizers is on.

    modelopt's exchanges a function of transformers' while it runs, under which the reference would run, too.
    """
    for module in model.modules():
        quantizers = [child for name, child in module.named_children() if name.endswith("_bmm_quantizer")]
        if quantizers and not any(getattr(quantizer, "is_enabled", True) for quantizer in quantizers):
            cast("Any", module).export()
