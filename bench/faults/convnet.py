"""A small convolutional network in plain torch: batch norm, in-place writes, depthwise and transposed kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 16


class ResidualBlock(nn.Module):
    """Depthwise and pointwise convolution with batch norm, added to its input: [N, C, H, W] to the same."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.depthwise(x)
        out = self.bn1(out)
        out = self.act1(out)
        out = self.pointwise(out)
        out = self.bn2(out)
        out = out + identity
        activated: Tensor = self.act2(out)
        return activated


class PreActivation(nn.Module):
    """An activation before the convolution; the residual is the input from before it."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        mixed: Tensor = self.conv(self.act(x))
        return x + mixed


class ConvNet(nn.Module):
    """Downsamples, mixes, upsamples by a transposed convolution, and classifies: [N, 3, H, W] to logits and a map."""

    def __init__(self, width: int = WIDTH, classes: int = 7) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.ModuleList([ResidualBlock(width), ResidualBlock(width)])
        self.mix = PreActivation(width)
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2, groups=2)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        skip = x
        x = self.pool(x)
        for block in self.blocks:
            x = block(x)
        x = self.mix(x)
        x = self.upsample(x) + skip
        return {"logits": self.head(x.mean(dim=(2, 3))), "map": x}


@functools.cache
def convnet() -> ConvNet:
    """Return the network in eval mode, with statistics in its batch norms as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ConvNet()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.3, 1.5)
                    module.weight.uniform_(0.6, 1.4)
                    module.bias.normal_(std=0.2)
    return model.eval()


def pixels() -> Any:
    """Return three random images, float32 [3, 3, 32, 32]."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
