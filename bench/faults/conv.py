"""The convolutional network: batch norm, padding, in-place writes, depthwise and transposed kernels."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults.case import Pair, Suite
from bench.faults.convnet import convnet, pixels
from bench.faults.rewrite import rewrite

suite = Suite("conv", convnet, pixels)


@suite.fault("mode", at="blocks.1.bn1")
def batch_norm_in_train_mode(pair: Pair) -> None:
    """One batch norm of the candidate is in train mode: it norms by its batch and moves its statistics."""
    pair.at("blocks.1.bn1").train()


@suite.fault("buffer", at="blocks.0.bn2")
def statistics_never_loaded(pair: Pair) -> None:
    """A batch norm has mean 0 and variance 1, as when it was made."""
    pair.at("blocks.0.bn2").reset_running_stats()


@suite.fault("buffer", at=["blocks.0.bn1", "blocks.1.bn1"])
def statistics_exchanged(pair: Pair) -> None:
    """Two batch norms have each other's statistics: both are wrong, either may be named first."""
    first, second = pair.at("blocks.0.bn1"), pair.at("blocks.1.bn1")
    first.running_mean, second.running_mean = second.running_mean, first.running_mean
    first.running_var, second.running_var = second.running_var, first.running_var


@suite.fault("leaf", at="mix.bn")
def batch_norm_eps(pair: Pair) -> None:
    """A batch norm has eps 1e-3, as in another framework."""
    pair.at("mix.bn").eps = 1e-3


@suite.fault("leaf", at="mix.conv")
def border_reflected(pair: Pair) -> None:
    """A convolution pads by reflection and not by zeros: only the border differs."""
    pair.candidate.mix.conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
    pair.candidate.mix.conv.load_state_dict(pair.reference.mix.conv.state_dict())


@suite.fault("leaf", at="stem.0")
def padding_on_one_side(pair: Pair) -> None:
    """The first convolution pads below and right alone, as another framework's "same" does with stride 2."""
    rewrite(
        pair.at("stem.0"),
        "self._conv_forward(input, self.weight, self.bias)",
        "F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride)",
    )


@suite.fault("parameter", at="blocks.1.depthwise")
def depthwise_kernel_flipped(pair: Pair) -> None:
    """A depthwise kernel is mirrored: convolution for correlation."""
    with torch.no_grad():
        weight = pair.at("blocks.1.depthwise").weight
        weight.copy_(weight.flip(2, 3))


@suite.fault("parameter", at="upsample")
def transposed_kernel_of_the_wrong_axis(pair: Pair) -> None:
    """The kernel of the transposed convolution is scaled by a vector for its outputs along the input axis."""
    with torch.no_grad():
        scales = torch.linspace(0.5, 1.5, 16)
        weight = pair.at("upsample").weight
        weight.div_(scales.reshape(2, 8).repeat_interleave(8, 0)[:, :, None, None])
        weight.mul_(scales[:, None, None, None])


@suite.fault("leaf", at="pool")
def average_for_maximum(pair: Pair) -> None:
    """The pooling takes the mean."""
    pair.candidate.pool = nn.AvgPool2d(2)


@suite.fault("container", at=["mix", "mix.act"], kind=["miscalls", "introduces"])
def residual_overwritten_in_place(pair: Pair) -> None:
    """The activation writes into its input, which the block adds afterwards.

    The activation's flag was changed, and its own output is right; the block is what uses the overwritten tensor. So
    either may be named.
    """
    pair.at("mix.act").inplace = True


@suite.fault("container", at="blocks.0", kind=["miscalls", "introduces"])
def shortcut_missing(pair: Pair) -> None:
    """A residual block does not add its input."""
    rewrite(pair.at("blocks.0"), "out = out + identity", "out = out")


@suite.fault("container", at="", kind=["miscalls", "introduces"])
def skip_mirrored(pair: Pair) -> None:
    """The root flips the skip connection that it adds to the upsampled map."""
    rewrite(pair.candidate, "self.upsample(x) + skip", "self.upsample(x) + skip.flip(3)")


@suite.fault("dtype", at="blocks.1.pointwise", kind="non_finite")
def half_overflows(pair: Pair) -> None:
    """One convolution computes in float16 on weights of 1e5, which are infinite there."""
    for model in (pair.reference, pair.candidate):
        with torch.no_grad():
            model.get_submodule("blocks.1.pointwise").weight[0, 0] = 1e5
            model.get_submodule("blocks.1.bn2").weight[0] = 1e-5
    rewrite(
        pair.at("blocks.1.pointwise"),
        "self._conv_forward(input, self.weight, self.bias)",
        "self._conv_forward(input.half(), self.weight.half(), self.bias).float()",
    )
