"""Qualcomm's AIMET: a calibrated simulation of quantized inference, with quantizers in lists beside the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import calibrate, first_sample, toolkit
from qtrace.toolkits.quantizer import Reading, channel_axis, integer_name, own_weight
from qtrace.tree import tensors

TOOLKIT = "aimet"
MARKS = ("param_quantizers", "input_quantizers", "output_quantizers")


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
                # Of several inputs only the first is compared with the range of its quantizer.
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
    # Its layers and quantizers are new objects, and so in training mode.
    return simulated.train(reference.training)


class _Traceable(nn.Module):
    """A model as `torch.jit.trace` takes one: called with the tensors of a sample, it returns a tuple of tensors.

    Other arguments of the sample, such as `use_cache`, are constant.
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
