"""A small UNet and the same network as another author writes it.

The two differ in their names and nesting, in how they pool and apply ReLU (the port does the latter in place), and in
the order in which they join the skip connection, so the port's first convolution after a join has its input channels
in another order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(out_ch)
        self.conv2 = nn.Conv2d(out_ch, out_ch, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_ch)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class UNet(nn.Module):
    """Encoder, bottleneck and decoder; the upsampled features come before the skip connection."""

    def __init__(self, in_ch: int, classes: int, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        *outer, deepest = widths
        ups = list(reversed(widths))
        self.encoder = nn.ModuleList(ConvBlock(a, b) for a, b in zip([in_ch, *outer], outer, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = ConvBlock(outer[-1], deepest)
        self.upsamplers = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in itertools.pairwise(ups))
        self.decoder = nn.ModuleList(ConvBlock(2 * b, b) for b in ups[1:])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for upsample, block in zip(self.upsamplers, self.decoder, strict=True):
            x = block(torch.cat([upsample(x), skips.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits


class DoubleConv(nn.Module):
    """(convolution, batch norm, ReLU) twice."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.double_conv(x)
        return out


class Down(nn.Module):
    """Halves the resolution, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.max_pool2d(x, kernel_size=2))
        return out


class Up(nn.Module):
    """Doubles the resolution, joins the skip connection in front, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat([x2, self.up(x1)], dim=1))
        return out


class SegNet(nn.Module):
    """The network with its steps spelled out one by one."""

    def __init__(self, n_channels: int, n_classes: int, base: int) -> None:
        super().__init__()
        self.inc = DoubleConv(n_channels, base)
        self.down1 = Down(base, 2 * base)
        self.down2 = Down(2 * base, 4 * base)
        self.up1 = Up(4 * base, 2 * base)
        self.up2 = Up(2 * base, base)
        self.outc = nn.Conv2d(base, n_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        out: Tensor = self.outc(x)
        return out


def reference() -> nn.Module:
    """The UNet with random weights, biases, norm weights and running statistics."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(51)
        model = UNet(in_ch=3, classes=4)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * torch.randn(module.num_features))
                module.running_var.copy_(0.5 + torch.rand(module.num_features))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def port(reference: nn.Module) -> nn.Module:
    """The other author's network with the weights of `reference`."""
    source = reference.state_dict()
    with torch.random.fork_rng(devices=[]):
        model = SegNet(n_channels=3, n_classes=source["head.weight"].shape[0], base=source["head.weight"].shape[1])
    blocks = {
        "encoder.0": "inc",
        "encoder.1": "down1.conv",
        "bottleneck": "down2.conv",
        "decoder.0": "up1.conv",
        "decoder.1": "up2.conv",
    }
    prefixes = {"head": "outc", "upsamplers.0": "up1.up", "upsamplers.1": "up2.up"}
    for old, new in blocks.items():
        for part, index in (("conv1", 0), ("bn1", 1), ("conv2", 3), ("bn2", 4)):
            prefixes[f"{old}.{part}"] = f"{new}.double_conv.{index}"
    target = {}
    for key, value in source.items():
        prefix, name = key.rsplit(".", 1)
        if key in ("decoder.0.conv1.weight", "decoder.1.conv1.weight"):
            upsampled, skip = value.chunk(2, dim=1)
            value = torch.cat([skip, upsampled], dim=1)
        target[f"{prefixes[prefix]}.{name}"] = value
    model.load_state_dict(target)
    return model.eval()


def inputs() -> Tensor:
    """A batch of two images."""
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(52))


def _scale(name: str, row: int, factor: float = 1.5) -> Callable[[nn.Module], None]:
    """A function that multiplies one row (or entry) of the named parameter."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[row].mul_(factor)

    return apply


def _shift(name: str, entry: int, amount: float = 0.5) -> Callable[[nn.Module], None]:
    """A function that adds to one entry of the named parameter."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[entry].add_(amount)

    return apply


FAULTS: list[tuple[str, str, Callable[[nn.Module], None]]] = [
    ("encoder.0.conv1", "output channel 2", _scale("inc.double_conv.0.weight", 2)),
    ("encoder.0.bn2", "weight entry 5", _scale("inc.double_conv.4.weight", 5)),
    ("encoder.1.conv2", "bias entry 7", _shift("down1.conv.double_conv.3.bias", 7)),
    ("bottleneck.conv1", "output channel 19", _scale("down2.conv.double_conv.0.weight", 19)),
    ("bottleneck.bn1", "bias entry 11", _shift("down2.conv.double_conv.1.bias", 11)),
    ("upsamplers.0", "input channel 8", _scale("up1.up.weight", 8)),
    ("decoder.0.conv1", "output channel 3", _scale("up1.conv.double_conv.0.weight", 3)),
    ("upsamplers.1", "bias entry 1", _shift("up2.up.bias", 1)),
    ("decoder.1.bn1", "weight entry 4", _scale("up2.conv.double_conv.1.weight", 4)),
    ("decoder.1.conv2", "output channel 6", _scale("up2.conv.double_conv.3.weight", 6)),
    ("head", "row 1", _scale("outc.weight", 1)),
]
