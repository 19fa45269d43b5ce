"""Faults among the fake-quantized layers of a vision transformer and of a convolutional net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.fake_quantization import FakeQuantLinear, quantize
from bench.faults.reasons import (
    BIAS_ZERO,
    CLIPS,
    COARSE,
    EXCHANGED,
    INPUT_CLIPS,
    NON_FINITE,
    SCALES_AXIS,
    STATISTICS,
    UNCALIBRATED,
    WEIGHT,
    ZERO,
    all_of,
)
from bench.faults.vision_models import images, resnet_like


class QuantLayer(nn.Module):
    """A layer inside a wrapper that fake-quantizes its weight per channel (`axis`) and its output per tensor.

    Without a calibrated range the output passes as it is.
    """

    low: Tensor
    high: Tensor

    def __init__(self, layer: Any, bits: int = 8) -> None:
        super().__init__()
        self.layer = layer
        self.bits = bits
        self.axis = 0
        self.weight_scale: Tensor | None = None
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.dim() > 1:
            self.weight_scale = self.scales(self.axis)
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(-float("inf")))
        self.calibrates = False

    def scales(self, axis: int) -> Tensor:
        """Return the step per channel along `axis` of the layer's weight."""
        others = [i for i in range(self.layer.weight.dim()) if i != axis]
        largest: Tensor = self.layer.weight.detach().abs().amax(others, keepdim=True)
        return largest / (2.0 ** (self.bits - 1) - 1)

    def forward(self, input: Tensor) -> Tensor:
        kept = self.layer.weight
        if self.weight_scale is not None and not self.calibrates:
            top = 2 ** (self.bits - 1) - 1
            rounded = torch.round(kept / self.weight_scale).clamp(-top, top) * self.weight_scale
            self.layer.weight = nn.Parameter(rounded, requires_grad=False)
        output: Tensor = self.layer(input)
        self.layer.weight = kept
        if self.calibrates:
            self.low = torch.minimum(self.low, output.amin())
            self.high = torch.maximum(self.high, output.amax())
            return output
        return self.rounded(output)

    def rounded(self, output: Tensor) -> Tensor:
        """Return the output on the grid of the calibrated range, widened to hold zero."""
        if not self.low <= self.high:
            return output
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        step = (high - low) / (2**self.bits - 1)
        zero = torch.round(-low / step)
        stored = torch.clamp(torch.round(output / step) + zero, 0, 2**self.bits - 1)
        restored: Tensor = (stored - zero) * step
        return restored


def _wrapped(model: Any, inputs: Any, kinds: tuple[type[nn.Module], ...], bits: int = 8) -> Any:
    """Wrap every module of these kinds, calibrated on `inputs`."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    wrappers = []
    for name, layer in layers:
        wrappers.append(QuantLayer(layer, bits))
        model.set_submodule(name, wrappers[-1])
    for calibrates in (True, False):
        for wrapper in wrappers:
            wrapper.calibrates = calibrates
        if calibrates:
            with torch.no_grad():
                model(inputs)
    return model.eval()


def _pixels() -> Tensor:
    return images(45, 3)


def _conv(bits: int = 8) -> Callable[[Any], Any]:
    return lambda model: _wrapped(model, _pixels(), (nn.Conv2d, nn.Linear, nn.BatchNorm2d), bits)


vit = Suite("quantized_vit", models.vit, models.image, lambda model: quantize(model, models.image()))
conv = Suite("quantized_conv", resnet_like, _pixels, _conv())
coarse = Suite("quantized_conv", resnet_like, _pixels, _conv(5))


def _layer(pair: Pair, path: str) -> Any:
    module: Any = pair.at(path)
    assert isinstance(module, (FakeQuantLinear, QuantLayer))
    return module


@vit.fault("quantization", at="vit.layers.0.mlp.fc1", reason=all_of(r"\bweight", COARSE))
def four_bits_among_eight(pair: Pair) -> None:
    """One layer's weight is rounded to 4 bits where all others have 8."""
    linear = _layer(pair, "vit.layers.0.mlp.fc1")
    linear.weight_scale.mul_(16)
    linear.weight_zero_point.div_(16).round_()


@vit.fault("quantization", at="vit.layers.1.mlp.fc2", reason=all_of(r"\binput", rf"zero[-_ ]?point|negative|{CLIPS}"))
def zero_point_dropped(pair: Pair) -> None:
    """One layer's input, which is asymmetric after GELU, is quantized without its zero point: negatives are cut."""
    _layer(pair, "vit.layers.1.mlp.fc2").input_zero_point.zero_()


@vit.fault("quantization", at="vit.layers.1.attention.q_proj", reason=all_of(r"\binput", rf"zero[-_ ]?point|{CLIPS}"))
def range_without_zero(pair: Pair) -> None:
    """One layer's observed input range starts at 0.2 and its zero point lies outside of the grid, clamped to 0."""
    linear = _layer(pair, "vit.layers.1.attention.q_proj")
    linear.input_scale.mul_(0.6)
    linear.input_zero_point.fill_(20)


@vit.fault("quantization", at="vit.layers.0.attention.v_proj", reason=BIAS_ZERO)
def bias_quantized_away(pair: Pair) -> None:
    """One layer's bias was rounded to steps of 1, which leaves nothing of it."""
    _layer(pair, "vit.layers.0.attention.v_proj").bias = nn.Parameter(torch.zeros(64))


@vit.fault(
    "quantization",
    at=["vit.layers.0.attention.o_proj", "vit.layers.1.attention.o_proj"],
    reason=all_of(WEIGHT, EXCHANGED),
)
def weights_of_the_other_layer(pair: Pair) -> None:
    """The optimised weights of two layers were written to each other's place; both are wrong, either may be first."""
    first, second = _layer(pair, "vit.layers.0.attention.o_proj"), _layer(pair, "vit.layers.1.attention.o_proj")
    first.weight, second.weight = second.weight, first.weight


@vit.fault("quantization", at="vit.layers.1.mlp.activation_fn", reason=CLIPS)
def activation_clipped(pair: Pair) -> None:
    """Among quantized layers, one GELU stops at 1."""
    pair.replace(_Clipped())


class _Clipped(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input).clamp(max=1)


@vit.fault("quantization", at="vit.layers.0", kind=["miscalls", "introduces"])
def residual_of_the_quantized(pair: Pair) -> None:
    """Among quantized layers, one layer adds its normed input and not its input."""
    pair.rewrite(
        "        residual = hidden_states\n        hidden_states = self.layernorm_before(hidden_states)",
        "        hidden_states = self.layernorm_before(hidden_states)\n        residual = hidden_states",
    )


@vit.fault("quantization", at="classifier", reason=INPUT_CLIPS)
def last_layer_badly_scaled(pair: Pair) -> None:
    """The classifier's input scale is half: the largest values are clipped."""
    _layer(pair, "classifier").input_scale.mul_(0.35)


@vit.several("vit.layers.0.attention.k_proj", "vit.layers.1.mlp.fc1")
def scale_and_bits(pair: Pair) -> None:
    """One layer's input range is a fifth, another's weight has 3 bits."""
    _layer(pair, "vit.layers.0.attention.k_proj").input_scale.div_(5)
    other = _layer(pair, "vit.layers.1.mlp.fc1")
    other.weight_scale.mul_(32)
    other.weight_zero_point.div_(32).round_()


@vit.correct("drift", "clean")
def eight_bits(pair: Pair) -> None:
    """All linear layers of the vision transformer are rounded to 8 bits alike."""


@conv.fault("quantization", at="layer1.1.conv3", reason=CLIPS)
def range_of_one_output(pair: Pair) -> None:
    """One convolution's output range is a third of the observed one."""
    layer = _layer(pair, "layer1.1.conv3")
    layer.low.div_(3)
    layer.high.div_(3)


@conv.fault("quantization", at="layer2.0.conv2", reason=f"{SCALES_AXIS}|{CLIPS}")
def per_channel_along_the_inputs(pair: Pair) -> None:
    """One kernel's scales were taken per input channel, then applied per output channel: some are clipped."""
    layer = _layer(pair, "layer2.0.conv2")
    scales = layer.scales(1)
    layer.weight_scale = scales.reshape(-1).repeat(2)[: len(layer.layer.weight)].reshape(-1, 1, 1, 1) * 0.5


@conv.fault(
    "quantization",
    at="layer2.1.conv1",
    kind=["introduces", "non_finite"],
    reason=rf"{NON_FINITE}|{ZERO}|{UNCALIBRATED}",
)
def scale_never_set(pair: Pair) -> None:
    """One kernel's scales are uninitialised memory: a zero gives 0 / 0 in one channel."""
    layer = _layer(pair, "layer2.1.conv1")
    layer.weight_scale = layer.weight_scale.clone()
    layer.weight_scale[4] = 0.0


@conv.fault("quantization", at="layer1.0.bn2", reason=STATISTICS)
def batch_norm_of_old_statistics(pair: Pair) -> None:
    """Among quantized layers, one batch norm has its initial statistics; its range fits what it returns."""
    layer = _layer(pair, "layer1.0.bn2")
    layer.layer.reset_running_stats()
    layer.low.fill_(-8)
    layer.high.fill_(8)


@conv.fault("quantization", at="layer1.1", kind=["miscalls", "introduces"])
def shortcut_lost(pair: Pair) -> None:
    """Among quantized layers, a block does not add its shortcut."""
    pair.rewrite("        out += identity\n", "")


@conv.fault("quantization", at="fc", reason=all_of(r"\bweight", COARSE))
def classifier_of_three_bits(pair: Pair) -> None:
    """The classifier's weight has 3 bits."""
    layer = _layer(pair, "fc")
    layer.weight_scale = layer.weight_scale * 40


@conv.fault("quantization", at="context.0", reason=rf"{COARSE}|(one|a single) scale")
def depthwise_per_tensor(pair: Pair) -> None:
    """The depthwise kernel has one scale for all channels, whose sizes span a factor of a hundred."""
    sizes = torch.logspace(-2, 0.3, 64)[:, None, None, None]
    pair.reference.context[0].weight.mul_(sizes)
    layer = _layer(pair, "context.0")
    layer.layer.weight.mul_(sizes)
    layer.weight_scale = (layer.layer.weight.detach().abs().amax() / 15).expand(64, 1, 1, 1)


@conv.correct("drift", "clean")
def eight_bits_wrapped(pair: Pair) -> None:
    """Every convolution, norm and linear layer is wrapped and rounded to 8 bits alike."""


@coarse.drift()
def five_bits_wrapped(pair: Pair) -> None:
    """Every convolution, norm and linear layer is wrapped and rounded to 5 bits alike."""
