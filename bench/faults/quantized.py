"""A fake-quantized Llama and a BERT of int8 weights: every linear layer is a little off, and one stands out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.fake_quantization import quantize
from bench.faults.reasons import (
    CLIPS,
    COARSE,
    INPUT_CLIPS,
    MISSING,
    NON_FINITE,
    ORDER,
    PART,
    ROUNDED,
    SCALES_AXIS,
    SCALING,
    UNCALIBRATED,
    WEIGHT,
    WEIGHT_CLIPS,
    ZERO,
    all_of,
)

suite = Suite("quantized", models.llama, models.uncached, lambda model: quantize(model, models.uncached()))


def _coarse(model: Any) -> Any:
    return quantize(model, models.uncached(), bits=5)


coarse = Suite("quantized", models.llama, models.uncached, _coarse)


@suite.fault("quantization", at="model.layers.0.mlp.down_proj", reason=WEIGHT_CLIPS)
def range_clips_weights(pair: Pair) -> None:
    """The scales of one weight are a third of what they should be, so most of its values are clipped."""
    pair.faulty.weight_scale.div_(3)


@suite.fault("quantization", at="model.layers.1.self_attn.o_proj", reason=INPUT_CLIPS)
def range_clips_inputs(pair: Pair) -> None:
    """The range that was observed for one layer's input is a quarter of the real one."""
    pair.faulty.input_scale.div_(4)


@suite.fault("quantization", at="model.layers.1.mlp.gate_proj", reason=all_of(r"\bweight", COARSE))
def one_wide_scale_for_all_channels(pair: Pair) -> None:
    """One layer has a single scale, of a range 16 times too wide, where its peers have one per channel."""
    scale = pair.faulty.weight_scale
    scale.copy_((scale.amax() * 16).expand_as(scale))


@suite.fault("quantization", at="model.layers.0.self_attn.q_proj", reason=rf"{ZERO}|{UNCALIBRATED}")
def scale_of_zero(pair: Pair) -> None:
    """The scale of one layer's input was never set: x / 0 is clamped and multiplied by 0, so the layer sees zeros."""
    pair.faulty.input_scale.zero_()


@suite.fault(
    "quantization", at="model.layers.1.mlp.down_proj", kind="non_finite", reason=rf"{NON_FINITE}|{UNCALIBRATED}"
)
def range_of_an_empty_observer(pair: Pair) -> None:
    """One layer's observer saw nothing, so its range goes from inf to -inf: the layer's output is NaN."""
    linear = pair.faulty
    linear.input_scale.fill_(-float("inf"))
    linear.input_zero_point.fill_(float("nan"))


@suite.fault("quantization", at="model.layers.1.self_attn.v_proj", reason=rf"{UNCALIBRATED}|\bscale\b.*\b1(\.0+)?\b")
def observer_never_calibrated(pair: Pair) -> None:
    """One layer's input still has the scale 1 and the zero point 0 that its observer was made with."""
    linear = pair.faulty
    linear.input_scale.fill_(1.0)
    linear.input_zero_point.zero_()


@suite.fault("quantization", at="model.layers.0.mlp.up_proj")
def zero_point_misread(pair: Pair) -> None:
    """One layer reads its zero points 4 too small when it restores values, so that zero is not zero any more."""
    pair.rewrite("(stored - zero_point) * scale", "(stored - (zero_point - 4)) * scale", within="fake_quantize")


@suite.fault("quantization", at="model.layers.1.self_attn.q_proj", reason=SCALES_AXIS)
def scales_along_the_wrong_axis(pair: Pair) -> None:
    """The scales of a square weight, one per output channel, are applied per input channel.

    Its rows are of different size, on both sides, so that the scales are not all alike.
    """
    linear = pair.faulty
    rows = torch.linspace(0.3, 3, linear.weight.shape[0])[:, None]
    for layer in pair.both():
        layer.weight.mul_(rows)
    linear.weight_scale = (linear.weight_scale * rows).t().contiguous()
    linear.weight_zero_point = linear.weight_zero_point.t().contiguous()


@suite.fault("quantization", at="model.layers.0.self_attn", kind=["miscalls", "introduces"])
def scale_in_attention(pair: Pair) -> None:
    """Among quantized layers, the code of one attention scales its logits wrongly."""
    pair.rewrite("scaling=self.scaling", "scaling=self.scaling * 2")


@suite.fault("quantization", at="model", kind="miscalls", argument="attention_mask", reason=MISSING)
def mask_lost(pair: Pair) -> None:
    """Among quantized layers, the model hands on no mask: no rounding explains that."""
    pair.rewrite("attention_mask=causal_mask", "attention_mask=None")


@suite.correct("drift", "clean")
def eight_bits(pair: Pair) -> None:
    """All layers are rounded to 8 bits alike, and none stands out."""


@coarse.drift()
def five_bits(pair: Pair) -> None:
    """All layers are rounded to 5 bits alike: a large error with no single culprit."""


class Int8Linear(nn.Module):
    """A linear layer on int8 weights with a scale per output channel, as torch's weight-only toolkits keep them."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", torch.round(linear.weight.detach() / scale).to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def _int8(model: Any) -> Any:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Int8Linear(module))
    return model


bert = Suite("int8_bert", models.bert, models.padded, _int8)


@bert.correct("drift", "clean")
def weight_only(pair: Pair) -> None:
    """Every linear layer keeps its weight in int8: a small error everywhere."""


@bert.fault(
    "quantization",
    at="bert.encoder.layer.0.attention.self.key",
    reason=all_of(rf"\bscales?\b|{WEIGHT}", rf"{PART}|{ORDER}"),
)
def scales_shuffled(pair: Pair) -> None:
    """The scales of one layer's outputs are one channel off."""
    linear = pair.faulty
    linear.scale.copy_(linear.scale.roll(1, 0) * 1.0)
    linear.scale[:16].mul_(1.5)


@bert.fault(
    "quantization",
    at="bert.encoder.layer.1.intermediate.dense",
    reason=rf"unsigned|\bu?int(8|16)\b|\bdtypes?\b|\bsigns?\b|{all_of(WEIGHT, PART)}",
)
def stored_as_unsigned(pair: Pair) -> None:
    """One layer reads its negative weights as unsigned bytes, 16 rows of it."""
    linear = pair.faulty
    weight = linear.weight.to(torch.int16)
    weight[:16] = torch.where(weight[:16] < 0, weight[:16] + 256, weight[:16])
    linear.weight = weight


@bert.fault("quantization", at="bert.encoder.layer.1.output.dense", reason=rf"overflow|\bwrap|\bsigns?\b|{CLIPS}")
def wrapped_round_at_the_end(pair: Pair) -> None:
    """One layer's largest weights overflowed int8 and turned round: scales were made for 7 bits more."""
    linear = pair.faulty
    linear.scale.mul_(0.8)
    linear.weight = (linear.weight.to(torch.float32) / 0.8).round().to(torch.int32).to(torch.int8)


@bert.fault(
    "quantization",
    at="bert.encoder.layer.0.output.LayerNorm",
    reason=all_of(WEIGHT, rf"{ROUNDED}|{COARSE}|\bsteps?\b|\bquarters?\b"),
)
def norm_in_int8_too(pair: Pair) -> None:
    """Among layers of int8 weights, one LayerNorm's weight was rounded to steps of a quarter."""
    weight = pair.faulty.weight
    weight.copy_((weight * 4).round() / 4)


@bert.fault("quantization", at="bert.encoder.layer.1.attention.self", kind=["miscalls", "introduces"], reason=SCALING)
def attention_scaled_twice(pair: Pair) -> None:
    """Among layers of int8 weights, one attention divides by the root of the head size once more."""
    pair.faulty.scaling *= 0.5


@bert.fault("quantization", at="bert.encoder", kind="miscalls", argument="attention_mask", reason=MISSING)
def mask_not_handed_down(pair: Pair) -> None:
    """Among layers of int8 weights, the encoder hands its layers no mask."""
    pair.rewrite("                attention_mask,\n", "                None,\n")
