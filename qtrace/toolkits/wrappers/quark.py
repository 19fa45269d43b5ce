"""AMD's quark: int8 weights and inputs, per tensor, calibrated on the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import first_sample, toolkit


def wrap(reference: nn.Module, samples: Sequence[Sample], freeze: bool = False) -> nn.Module:
    """Return `reference` in quark's layers; with `freeze` the rounded weights take the place of the float ones.

    Raises:
        SourceError: amd-quark is missing.
        UsageError: there is no sample.
    """
    first_sample("quark", samples)
    with toolkit("quark", "quark", "amd-quark"):
        from quark.torch import ModelQuantizer
        from quark.torch.quantization import Int8PerTensorSpec, QConfig, QLayerConfig

        spec = Int8PerTensorSpec(
            observer_method="min_max", symmetric=True, scale_type="float", round_method="half_even", is_dynamic=False
        ).to_quantization_spec()
        quantizer = ModelQuantizer(QConfig(global_quant_config=QLayerConfig(weight=spec, input_tensors=spec)))
        calls: Any = [dict(sample.kwargs) if sample.kwargs else sample.args[0] for sample in samples]
        loader: Any = torch.utils.data.DataLoader(calls, batch_size=None)
        quantized: nn.Module = quantizer.quantize_model(reference, loader)
        if freeze:
            quantized = ModelQuantizer.freeze(quantized)
    return quantized.train(reference.training)
