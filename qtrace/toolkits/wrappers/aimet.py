"""Qualcomm's AIMET: a simulation of quantized inference, calibrated on the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import calibrate, first_sample, toolkit
from qtrace.tree import tensors


def wrap(reference: nn.Module, samples: Sequence[Sample], param_bits: int = 8, output_bits: int = 8) -> nn.Module:
    """Return the model of AIMET's `QuantizationSimModel`, with quantizers beside parameters and outputs.

    AIMET follows the model by `torch.jit.trace` on the first sample.

    Raises:
        SourceError: aimet-torch is missing.
        UsageError: there is no sample.
    """
    sample = first_sample("aimet", samples)
    with toolkit("aimet", "aimet_torch", "aimet-torch"):
        from aimet_torch import QuantizationSimModel

        simulation = QuantizationSimModel(
            _Traceable(reference, sample).train(reference.training),
            dummy_input=tuple(filter(torch.is_tensor, (*sample.args, *sample.kwargs.values()))),
            default_param_bw=param_bits,
            default_output_bw=output_bits,
        )
        simulation.compute_encodings(lambda traceable: calibrate(traceable.model, samples))
        simulated: nn.Module = simulation.model.model
    # Its layers and quantizers are made new, and so in training mode.
    return simulated.train(reference.training)


class _Traceable(nn.Module):
    """A model as `torch.jit.trace` takes one: called with the tensors of a sample, it returns a tuple of tensors.

    What the sample holds beside them, such as `use_cache`, is constant.
    """

    def __init__(self, model: nn.Module, sample: Sample) -> None:
        super().__init__()
        self.model = model
        self.sample = sample

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = iter(given)

        def filled(value: Any) -> Any:
            return next(values) if torch.is_tensor(value) else value

        args = [filled(value) for value in self.sample.args]
        kwargs = {name: filled(value) for name, value in self.sample.kwargs.items()}
        return tuple(tensor for _, tensor in tensors(self.model(*args, **kwargs)))
