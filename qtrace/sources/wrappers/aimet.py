"""Qualcomm's AIMET: a simulation of quantized inference, calibrated on the samples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qtrace.sources.samples import Sample
from qtrace.sources.wrappers.toolkit import calibrate, first_sample, toolkit


def wrap(reference: nn.Module, samples: Sequence[Sample], param_bits: int = 8, output_bits: int = 8) -> nn.Module:
    """Return the model of AIMET's `QuantizationSimModel`, with quantizers beside parameters and outputs.

    AIMET follows the model by `torch.jit.trace`, which takes no models that return anything but tensors and tuples.

    Raises:
        SourceError: aimet-torch is missing.
        UsageError: there is no sample.
    """
    sample = first_sample("aimet", samples)
    with toolkit("aimet", "aimet_torch", "aimet-torch"):
        from aimet_torch import QuantizationSimModel

        dummy = sample.args or dict(sample.kwargs)
        simulation = QuantizationSimModel(
            reference, dummy_input=dummy, default_param_bw=param_bits, default_output_bw=output_bits
        )
        simulation.compute_encodings(lambda model: calibrate(model, samples))
        simulated: nn.Module = simulation.model
    return simulated
