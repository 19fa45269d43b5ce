"""PyTorch's torchao: linear layers with quantized weights, or with fake quantization for training."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import chosen, toolkit

SCHEMES = ("int8_weight_only", "int8_dynamic", "int4_weight_only", "float8_weight_only", "intx_weight_only", "qat")


def wrap(
    reference: nn.Module,
    samples: Sequence[Sample],
    scheme: str = "int8_weight_only",
    bits: int = 4,
    group_size: int = 32,
    keep: Sequence[str] = (),
) -> nn.Module:
    """Return `reference` with its linear layers quantized in place by `torchao.quantize_`.

    Layers whose own name is in `keep` stay as they are, such as one whose size fits no group.

    `int8_weight_only` and `float8_weight_only` round the weights, `int8_dynamic` the activations as well;
    `intx_weight_only` rounds weights to `bits` in groups of `group_size` with torch's own operators, and `qat`
    fake-quantizes them so, as before training. `int4_weight_only` packs weights for the kernels of the device: on the
    processor by torchao's prototype, since its stable format needs an accelerator.

    Raises:
        SourceError: torchao is missing.
        UsageError: no such scheme.
    """
    chosen("torchao", "scheme", scheme, SCHEMES)
    with toolkit("torchao", "torchao"):
        from torchao.quantization import quantize_

        on_processor = all(parameter.device.type == "cpu" for parameter in reference.parameters())
        # The toolkit's own choice of layers, which leaves out what cannot be quantized.
        fits: Any = inspect.signature(quantize_).parameters["filter_fn"].default
        quantize_(
            reference,
            _config(scheme, bits, group_size, on_processor),
            filter_fn=lambda module, path: fits(module, path) and path.rpartition(".")[2] not in keep,
        )
    # Fake-quantized layers are made new, and so in training mode.
    return reference.train(reference.training)


def _config(scheme: str, bits: int, group_size: int, on_processor: bool) -> Any:
    import torchao.quantization as ao

    if scheme == "int8_weight_only":
        return ao.Int8WeightOnlyConfig()
    if scheme == "int8_dynamic":
        return ao.Int8DynamicActivationInt8WeightConfig()
    if scheme == "int4_weight_only" and on_processor:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=group_size)
    if scheme == "int4_weight_only":
        return ao.Int4WeightOnlyConfig(group_size=group_size)
    if scheme == "float8_weight_only":
        return ao.Float8WeightOnlyConfig()
    stored = getattr(torch, f"int{bits}")
    if scheme == "intx_weight_only":
        return ao.IntxWeightOnlyConfig(weight_dtype=stored, granularity=ao.PerGroup(group_size))
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    return QATConfig(weight_config=IntxFakeQuantizeConfig(stored, group_size=group_size), step="prepare")
