"""AMD's brevitas: quantized layers in the place of torch's own, calibrated on the samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import calibrate, chosen, toolkit

MODES = ("layerwise", "fx")


def wrap(reference: nn.Module, samples: Sequence[Sample], mode: str = "layerwise") -> nn.Module:
    """Return `reference` in brevitas' layers: one by one (`layerwise`), or along the graph that torch.fx finds (`fx`).

    Raises:
        SourceError: brevitas is missing.
        UsageError: no such mode.
    """
    chosen("brevitas", "mode", mode, MODES)
    with toolkit("brevitas", "brevitas"):
        from brevitas.graph.calibrate import calibration_mode
        from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize, quantize

        if mode == "layerwise":
            quantized: nn.Module = layerwise_quantize(reference)
        else:
            quantized = quantize(preprocess_for_quantize(reference))
        with torch.no_grad(), calibration_mode(quantized):
            calibrate(quantized, samples)
    return quantized.train(reference.training)
