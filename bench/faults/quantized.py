"""A fake-quantized Llama: every linear layer is a little off, and one stands out because its parameters are wrong."""

from __future__ import annotations

from typing import Any

import torch

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.fake_quantization import quantize
from bench.faults.rewrite import rewrite

suite = Suite("quantized", models.llama, models.uncached, lambda model: quantize(model, models.uncached()))


def _coarse(model: Any) -> Any:
    return quantize(model, models.uncached(), bits=5)


coarse = Suite("quantized", models.llama, models.uncached, _coarse)


@suite.fault("quantization", at="model.layers.0.mlp.down_proj")
def range_clips_weights(pair: Pair) -> None:
    """The scales of one weight are a third of what they should be, so most of its values are clipped."""
    pair.at("model.layers.0.mlp.down_proj").weight_scale.div_(3)


@suite.fault("quantization", at="model.layers.1.self_attn.o_proj")
def range_clips_inputs(pair: Pair) -> None:
    """The range that was observed for one layer's input is a quarter of the real one."""
    pair.at("model.layers.1.self_attn.o_proj").input_scale.div_(4)


@suite.fault("quantization", at="model.layers.1.mlp.gate_proj")
def one_wide_scale_for_all_channels(pair: Pair) -> None:
    """One layer has a single scale, of a range 16 times too wide, where its peers have one per channel."""
    scale = pair.at("model.layers.1.mlp.gate_proj").weight_scale
    scale.copy_((scale.amax() * 16).expand_as(scale))


@suite.fault("quantization", at="model.layers.0.self_attn.q_proj")
def scale_of_zero(pair: Pair) -> None:
    """The scale of one layer's input was never set: x / 0 is clamped and multiplied by 0, so the layer sees zeros."""
    pair.at("model.layers.0.self_attn.q_proj").input_scale.zero_()


@suite.fault("quantization", at="model.layers.1.mlp.down_proj", kind="non_finite")
def range_of_an_empty_observer(pair: Pair) -> None:
    """One layer's observer saw nothing, so its range goes from inf to -inf: the layer's output is NaN."""
    linear = pair.at("model.layers.1.mlp.down_proj")
    linear.input_scale.fill_(-float("inf"))
    linear.input_zero_point.fill_(float("nan"))


@suite.fault("quantization", at="model.layers.1.self_attn.v_proj")
def observer_never_calibrated(pair: Pair) -> None:
    """One layer's input still has the scale 1 and the zero point 0 that its observer was made with."""
    linear = pair.at("model.layers.1.self_attn.v_proj")
    linear.input_scale.fill_(1.0)
    linear.input_zero_point.zero_()


@suite.fault("quantization", at="model.layers.0.mlp.up_proj")
def zero_point_misread(pair: Pair) -> None:
    """One layer reads its zero points 4 too small when it restores values, so that zero is not zero any more."""
    rewrite(
        pair.at("model.layers.0.mlp.up_proj"),
        "return (stored - zero_point) * scale",
        "return (stored - (zero_point - 4)) * scale",
        within="fake_quantize",
    )


@suite.fault("quantization", at="model.layers.1.self_attn.q_proj")
def scales_along_the_wrong_axis(pair: Pair) -> None:
    """The scales of a square weight, one per output channel, are applied per input channel.

    Its rows are of different size, on both sides, so that the scales are not all alike.
    """
    linear = pair.at("model.layers.1.self_attn.q_proj")
    rows = torch.linspace(0.3, 3, linear.weight.shape[0])[:, None]
    for model in (pair.reference, pair.candidate):
        with torch.no_grad():
            model.get_submodule("model.layers.1.self_attn.q_proj").weight.mul_(rows)
    linear.weight_scale = (linear.weight_scale * rows).t().contiguous()
    linear.weight_zero_point = linear.weight_zero_point.t().contiguous()


@suite.fault("quantization", at="model.layers.0.self_attn", kind=["miscalls", "introduces"])
def scale_in_attention(pair: Pair) -> None:
    """Among quantized layers, the code of one attention scales its logits wrongly."""
    rewrite(pair.at("model.layers.0.self_attn"), "scaling=self.scaling", "scaling=self.scaling * 2")


@suite.fault("quantization", at="model", kind="miscalls", argument="attention_mask")
def mask_lost(pair: Pair) -> None:
    """Among quantized layers, the model hands on no mask: no rounding explains that."""
    rewrite(pair.at("model"), "attention_mask=causal_mask", "attention_mask=None")


@suite.correct("drift", "clean")
def eight_bits(pair: Pair) -> None:
    """All layers are rounded to 8 bits alike, and none stands out."""


@coarse.drift()
def five_bits(pair: Pair) -> None:
    """All layers are rounded to 5 bits alike: a large error with no single culprit."""
