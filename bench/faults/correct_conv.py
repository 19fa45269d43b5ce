"""Correct convolutional networks: other layouts, folded norms, other in-place writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults.case import Pair, Suite
from bench.faults.convnet import ConvNet, PreActivation, ResidualBlock, convnet, pixels
from bench.faults.rewrite import rewrite

suite = Suite("conv", convnet, pixels)


class _ChannelsLast:
    """Mixed into a layer: takes and returns [N, H, W, C]."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input.permute(0, 3, 1, 2))  # type: ignore[misc]
        return output.permute(0, 2, 3, 1)


class ConvNetChannelsLast(ConvNet):
    """The same network with channels last from its first layer on."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x.permute(0, 2, 3, 1))
        skip = x
        x = self.pool(x)
        for block in self.blocks:
            x = block(x)
        x = self.upsample(self.mix(x)) + skip
        return {"logits": self.head(x.mean(dim=(1, 2))), "map": x.permute(0, 3, 1, 2)}


class UpsampleByLinear(nn.Module):
    """A transposed convolution with stride = kernel size, as one matrix product per pixel and a reshape."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.stride, self.groups = int(conv.stride[0]), conv.groups
        self.weight = conv.weight
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        parts = x.reshape(n, self.groups, -1, h, w)
        weight = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        out = torch.einsum("ngchw,gcoij->ngohiwj", parts, weight).reshape(n, -1, h * self.stride, w * self.stride)
        assert self.bias is not None
        return out + self.bias[:, None, None]


@suite.correct()
def channels_last(pair: Pair) -> None:
    """The candidate works on [N, H, W, C] between its first and its last layer."""
    model = pair.candidate
    model.__class__ = ConvNetChannelsLast
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d)):
            module.__class__ = type(type(module).__name__, (_ChannelsLast, type(module)), {})


@suite.correct()
def batch_norms_folded(pair: Pair) -> None:
    """Each batch norm that follows a convolution is folded into it and replaced by an identity."""
    model = pair.candidate
    model.stem[0], model.stem[1] = _folded(model.stem[0], model.stem[1]), nn.Identity()
    for block in model.blocks:
        block.depthwise, block.bn1 = _folded(block.depthwise, block.bn1), nn.Identity()
        block.pointwise, block.bn2 = _folded(block.pointwise, block.bn2), nn.Identity()


def _folded(conv: Any, norm: Any) -> nn.Conv2d:
    gain = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach()
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    )
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * gain[:, None, None, None])
        assert folded.bias is not None
        folded.bias.copy_(norm.bias.double() - norm.running_mean.double() * gain)
    return folded


@suite.correct()
def upsampled_by_a_matrix(pair: Pair) -> None:
    """The transposed convolution is a matrix product per pixel, in a module of another class."""
    pair.candidate.upsample = UpsampleByLinear(pair.candidate.upsample)


@suite.correct()
def written_in_place(pair: Pair) -> None:
    """The candidate adds residuals in place, into tensors that modules returned before; the reference does not."""
    for block in pair.candidate.blocks:
        assert isinstance(block, ResidualBlock)
        rewrite(block, "out = out + identity", "out += identity")
    assert isinstance(pair.candidate.mix, PreActivation)
    rewrite(pair.candidate.mix, "return x + mixed", "return mixed.add_(x)")


@suite.correct()
def not_in_place(pair: Pair) -> None:
    """The candidate's activations return new tensors where the reference's write into their input."""
    for module in pair.candidate.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
