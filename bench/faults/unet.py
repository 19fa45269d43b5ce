"""A U-Net: skips, concatenations, interpolation, group norms, padding to an odd size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults.case import Pair, Suite
from bench.faults.more_vision_models import UNet, images, unet
from bench.faults.rewrite import rewrite

suite = Suite("unet", unet, lambda: images(30))


@suite.fault("argument", at="up1", kind=["miscalls", "introduces"], argument="x")
def concatenated_the_other_way_round(pair: Pair) -> None:
    """One decoder level puts the skip behind what comes from below."""
    rewrite(pair.at("up1"), "torch.cat([skip, x], dim=1)", "torch.cat([x, skip], dim=1)")


@suite.fault("leaf", at="up2.up")
def corners_not_aligned(pair: Pair) -> None:
    """The upsampling module does not align corners."""
    pair.at("up2.up").align_corners = False


@suite.fault("container", at="", kind=["miscalls", "introduces"])
def auxiliary_output_nearest(pair: Pair) -> None:
    """The root interpolates its auxiliary map by nearest neighbours, in its own code; the main output is right."""
    rewrite(pair.candidate, 'mode="bilinear", align_corners=False', 'mode="nearest"')


@suite.fault("argument", at="", kind="miscalls", argument="skip")
def skip_after_the_pool(pair: Pair) -> None:
    """The root hands its last level the skip blurred: taken after pooling and upsampled again."""
    rewrite(
        pair.candidate,
        "self.up2(up, x1)",
        "self.up2(up, F.interpolate(F.max_pool2d(x1, 2), size=x1.shape[2:]))",
    )


@suite.fault("container", at="up1", kind=["miscalls", "introduces"])
def padded_at_the_other_side(pair: Pair) -> None:
    """One level pads the odd row and column at the top left and not at the bottom right."""
    rewrite(
        pair.at("up1"),
        "[right // 2, right - right // 2, down // 2, down - down // 2]",
        "[right - right // 2, right // 2, down - down // 2, down // 2]",
    )


@suite.fault("leaf", at="down1.block.1")
def group_norm_of_other_groups(pair: Pair) -> None:
    """A group norm has 2 groups and not 4."""
    pair.at("down1.block.1").num_groups = 2


@suite.fault("leaf", at="down2.block.2")
def silu_as_hard_swish(pair: Pair) -> None:
    """One SiLU is a hard swish, as mobile toolkits put in its place."""
    pair.candidate.down2.block[2] = nn.Hardswish()


@suite.fault("parameter", at="up1.up")
def transposed_kernel_mirrored(pair: Pair) -> None:
    """The kernel of the transposed convolution is mirrored."""
    with torch.no_grad():
        pair.at("up1.up").weight.copy_(pair.at("up1.up").weight.flip(2, 3))


@suite.fault("parameter", at="up1.up")
def transposed_kernel_of_swapped_channels(pair: Pair) -> None:
    """The kernel of the square transposed convolution has input and output channels exchanged."""
    with torch.no_grad():
        pair.at("up1.up").weight.copy_(pair.at("up1.up").weight.transpose(0, 1).clone())


@suite.fault("leaf", at="pool", kind=["introduces"])
def shared_pool_takes_the_mean(pair: Pair) -> None:
    """The pooling, which is called twice, takes the mean."""
    pair.candidate.pool = nn.AvgPool2d(2)


@suite.fault("argument", at="", kind=["miscalls", "structure", "introduces"])
def pool_skipped_by_stride(pair: Pair) -> None:
    """The root takes every second pixel where it should pool, on its second level alone."""
    rewrite(pair.candidate, "self.down2(self.pool(x2))", "self.down2(x2[..., :-1:2, :-1:2])")


@suite.fault("leaf", at="outc")
def last_row_not_written(pair: Pair) -> None:
    """The last convolution leaves the last row of pixels of the second image at zero, as a tiled kernel may."""
    rewrite(
        pair.at("outc"),
        "return self._conv_forward(input, self.weight, self.bias)",
        "out = self._conv_forward(input, self.weight, self.bias); out[1, :, -1] = 0; return out",
    )


@suite.several("inc.block.3", "up2.up", "aux")
def weight_interpolation_and_bias(pair: Pair) -> None:
    """A kernel mirrored, corners not aligned, and an auxiliary head without its bias."""
    with torch.no_grad():
        pair.at("inc.block.3").weight.copy_(pair.at("inc.block.3").weight.flip(3))
        pair.at("aux").bias.zero_()
    pair.at("up2.up").align_corners = False


class _ChannelsLastInside(UNet):
    """The same network, with the image transposed (height for width) while it is inside."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(x.transpose(2, 3))
        return {name: value.transpose(2, 3) for name, value in outputs.items()}


@suite.correct()
def height_and_width_exchanged(pair: Pair) -> None:
    """The candidate works on transposed images with transposed kernels: every tensor inside is transposed."""
    model = pair.candidate
    model.__class__ = _ChannelsLastInside
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.weight.copy_(module.weight.transpose(2, 3).clone())


class _Normed(nn.Module):
    """A convolution and its group norm as one module."""

    def __init__(self, conv: Any, norm: Any) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(input))
        return out


@suite.correct()
def blocks_regrouped(pair: Pair) -> None:
    """Convolution and norm of each block stand in one module, so that the numbers in the sequence mean others."""
    for name in ("inc", "down1", "down2"):
        block = pair.at(name).block
        pair.at(name).block = nn.Sequential(
            _Normed(block[0], block[1]), block[2], _Normed(block[3], block[4]), block[5]
        )


@suite.correct()
def padded_by_a_module(pair: Pair) -> None:
    """Convolutions do not pad; a module before each does, inside a sequence in its place."""
    for name in ("inc", "down1"):
        block = pair.at(name).block
        for place in (0, 3):
            block[place].padding = (0, 0)
            block[place] = nn.Sequential(nn.ZeroPad2d(1), block[place])


@suite.correct()
def concatenation_undone_by_weights(pair: Pair) -> None:
    """Both levels concatenate the other way round, and the weights that follow are ordered accordingly."""
    for name in ("up1", "up2"):
        up = pair.at(name)
        conv = up.conv.block[0]
        skip = conv.in_channels - 16
        rewrite(up, "torch.cat([skip, x], dim=1)", "torch.cat([x, skip], dim=1)")
        with torch.no_grad():
            conv.weight.copy_(torch.cat([conv.weight[:, skip:], conv.weight[:, :skip]], dim=1))
