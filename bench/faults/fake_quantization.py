"""Linear layers with fake-quantized weights and inputs, as quantization toolkits simulate them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Return scale · (clamp(round(x / scale) + zero_point, 0, 2^bits - 1) - zero_point)."""
    stored = torch.clamp(torch.round(x / scale) + zero_point, 0, 2**bits - 1)
    return (stored - zero_point) * scale


class FakeQuantLinear(nn.Module):
    """A linear layer whose weight is quantized per output channel and whose input is quantized per tensor.

    Buffers: `weight_scale`, `weight_zero_point` [out, 1]; `input_scale`, `input_zero_point` scalars.
    """

    weight_scale: Tensor
    weight_zero_point: Tensor
    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(self, linear: nn.Linear, low: Tensor, high: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.weight = linear.weight
        self.bias = linear.bias
        scale, zero_point = _affine(linear.weight.amin(1, keepdim=True), linear.weight.amax(1, keepdim=True), bits)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        scale, zero_point = _affine(low, high, bits)
        self.register_buffer("input_scale", scale)
        self.register_buffer("input_zero_point", zero_point)

    def forward(self, input: Tensor) -> Tensor:
        weight = fake_quantize(self.weight, self.weight_scale, self.weight_zero_point, self.bits)
        rounded = fake_quantize(input, self.input_scale, self.input_zero_point, self.bits)
        return nn.functional.linear(rounded, weight, self.bias)


def _affine(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the range, which is widened to hold zero."""
    low, high = low.detach().clamp(max=0), high.detach().clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def quantize(model: Any, inputs: dict[str, Any], bits: int = 8) -> Any:
    """Replace all linear layers of `model`, calibrated on `inputs`; return the model."""
    ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        ranges[module] = (args[0].amin(), args[0].amax())

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [linear.register_forward_pre_hook(observe) for linear in linears.values()]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    for name, linear in linears.items():
        model.set_submodule(name, FakeQuantLinear(linear, *ranges[linear], bits))
    return model
