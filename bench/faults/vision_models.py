"""Vision models: residual and U-shaped convolutional nets, an MLP mixer, Swin, Segformer and CLIP's tower."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from bench.faults import models


def trained(build: Callable[[], Any]) -> Callable[[], Any]:
    """Build as `models.seeded` does, with batch statistics as after training."""

    @models.seeded()
    @functools.wraps(build)
    def model() -> Any:
        built = build()
        for module in built.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.3, 1.5)
        return built

    return model


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions with batch norm, added to the input or to its projection."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        inner = width // 2
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or width != out:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        activated: Tensor = self.relu(out)
        return activated


class ResNetLike(nn.Module):
    """A stem, two stages of bottlenecks, a dilated depthwise context, a classifier: [N, 3, H, W] to logits."""

    def __init__(self, width: int = 16, classes: int = 7) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Bottleneck(width, width * 2), Bottleneck(width * 2, width * 2))
        self.layer2 = nn.Sequential(Bottleneck(width * 2, width * 4, stride=2), Bottleneck(width * 4, width * 4))
        self.context = nn.Sequential(
            nn.Conv2d(width * 4, width * 4, 3, padding=2, dilation=2, groups=width * 4),
            nn.ReLU6(),
            nn.Conv2d(width * 4, width * 2, 1),
            nn.AvgPool2d(3, stride=2, padding=1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        x = self.context(x)
        x = torch.flatten(self.avgpool(x), 1)
        logits: Tensor = self.fc(x)
        return logits


class DoubleConv(nn.Module):
    """Two convolutions, each with group norm and activation."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, out, 3, padding=1),
            nn.GroupNorm(4, out),
            nn.SiLU(),
            nn.Conv2d(out, out, 3, padding=1),
            nn.GroupNorm(4, out),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class Up(nn.Module):
    """Upsamples by a transposed convolution or bilinearly, pads to the skip's size, concatenates, convolves."""

    def __init__(self, width: int, skip: int, out: int, bilinear: bool) -> None:
        super().__init__()
        self.up: nn.Module = (
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            if bilinear
            else nn.ConvTranspose2d(width, width, 2, stride=2)
        )
        self.conv = DoubleConv(width + skip, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        down, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        out: Tensor = self.conv(torch.cat([skip, x], dim=1))
        return out


class UNet(nn.Module):
    """Two levels down and up again: [N, 3, H, W] to a map of classes and a small auxiliary one."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.inc = DoubleConv(3, width)
        self.pool = nn.MaxPool2d(2)
        self.down1 = DoubleConv(width, width * 2)
        self.down2 = DoubleConv(width * 2, width * 2)
        self.up1 = Up(width * 2, width * 2, width * 2, bilinear=False)
        self.up2 = Up(width * 2, width, width, bilinear=True)
        self.outc = nn.Conv2d(width, classes, 1)
        self.aux = nn.Conv2d(width * 2, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x3 = self.down2(self.pool(x2))
        up = self.up1(x3, x2)
        auxiliary = F.interpolate(self.aux(up), size=x.shape[2:], mode="bilinear", align_corners=False)
        return {"out": self.outc(self.up2(up, x1)), "aux": auxiliary}


resnet_like = trained(ResNetLike)
unet = trained(UNet)


@trained
def swin() -> Any:
    """Return a Swin of two stages on 8 x 8 patches, windows of 4, learned positions and lively relative biases."""
    config = transformers.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        use_absolute_embeddings=True,
        num_labels=10,
        initializer_range=0.125,
        drop_path_rate=0.0,
        attn_implementation="eager",
    )
    return _spread(transformers.SwinForImageClassification(config), "relative_position_bias_table", "position_embed")


@trained
def segformer() -> Any:
    """Return a Segformer of two stages, the first with reduced keys and values."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 2],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        num_labels=5,
        initializer_range=0.125,
        drop_path_rate=0.0,
        attn_implementation="eager",
    )
    return transformers.SegformerForSemanticSegmentation(config)


@trained
def clip_vision() -> Any:
    """Return CLIP's vision tower with its projection."""
    config = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=24,
        initializer_range=0.125,
        initializer_factor=1.5,
        attn_implementation="eager",
    )
    return transformers.CLIPVisionModelWithProjection(config)


def _spread(model: Any, *names: str) -> Any:
    """Draw the parameters of these names, which a new model holds at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.normal_(std=0.5)
    return model


def without_norm(conv: Any, norm: Any, shift: bool = True) -> nn.Conv2d:
    """Return a convolution with the batch norm after it folded in, without the norm's mean where `shift` is False."""
    gain = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach()
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * gain[:, None, None, None])
        assert folded.bias is not None
        folded.bias.copy_(norm.bias.double() - norm.running_mean.double() * gain * shift)
    return folded


def images(size: int = 32, batch: int = 2) -> Tensor:
    """Return random images, float32 [batch, 3, size, size]."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
