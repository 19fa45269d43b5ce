"""A small convolutional network, right and wrong, and a U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults import vision_models
from bench.faults.case import Pair, Suite
from bench.faults.convnet import ConvNet, PreActivation, ResidualBlock, convnet, pixels
from bench.faults.reasons import EPS, EXCHANGED, ORDER, STATISTICS, TRANSPOSED, WEIGHT, all_of
from bench.faults.rewrite import rewrite
from bench.faults.vision_models import UNet, images, without_norm

conv = Suite("conv", convnet, pixels)


@conv.fault("mode", at="blocks.1.bn1")
def batch_norm_in_train_mode(pair: Pair) -> None:
    """One batch norm of the candidate is in train mode: it norms by its batch and moves its statistics."""
    pair.faulty.train()


@conv.fault("buffer", at="blocks.0.bn2", reason=STATISTICS)
def statistics_never_loaded(pair: Pair) -> None:
    """A batch norm has mean 0 and variance 1, as when it was made."""
    pair.faulty.reset_running_stats()


@conv.fault("buffer", at=["blocks.0.bn1", "blocks.1.bn1"], reason=all_of(STATISTICS, EXCHANGED))
def statistics_exchanged(pair: Pair) -> None:
    """Two batch norms have each other's statistics: both are wrong, either may be named first."""
    first, second = pair.at("blocks.0.bn1"), pair.at("blocks.1.bn1")
    first.running_mean, second.running_mean = second.running_mean, first.running_mean
    first.running_var, second.running_var = second.running_var, first.running_var


@conv.fault("leaf", at="mix.bn", reason=EPS)
def batch_norm_eps(pair: Pair) -> None:
    """A batch norm has eps 1e-3, as in another framework."""
    pair.faulty.eps = 1e-3


@conv.fault("leaf", at="mix.conv", reason=r"reflect|padding_mode")
def border_reflected(pair: Pair) -> None:
    """A convolution pads by reflection and not by zeros: only the border differs."""
    pair.candidate.mix.conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
    pair.candidate.mix.conv.load_state_dict(pair.reference.mix.conv.state_dict())


@conv.fault("leaf", at="stem.0")
def padding_on_one_side(pair: Pair) -> None:
    """The first convolution pads below and right alone, as another framework's "same" does with stride 2."""
    pair.rewrite(
        "self._conv_forward(input, self.weight, self.bias)",
        "F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride)",
    )


@conv.fault("parameter", at="blocks.1.depthwise", reason=all_of(WEIGHT, ORDER))
def depthwise_kernel_flipped(pair: Pair) -> None:
    """A depthwise kernel is mirrored: convolution for correlation."""
    weight = pair.faulty.weight
    weight.copy_(weight.flip(2, 3))


@conv.fault("parameter", at="upsample", reason=WEIGHT)
def transposed_kernel_of_the_wrong_axis(pair: Pair) -> None:
    """The kernel of the transposed convolution is scaled by a vector for its outputs along the input axis."""
    scales = torch.linspace(0.5, 1.5, 16)
    weight = pair.faulty.weight
    weight.div_(scales.reshape(2, 8).repeat_interleave(8, 0)[:, :, None, None])
    weight.mul_(scales[:, None, None, None])


@conv.fault("leaf", at="pool", reason=r"avgpool|average")
def average_for_maximum(pair: Pair) -> None:
    """The pooling takes the mean."""
    pair.candidate.pool = nn.AvgPool2d(2)


@conv.fault("container", at=["mix", "mix.act"], reason=r"in[-_ ]?place")
def residual_overwritten_in_place(pair: Pair) -> None:
    """The activation writes into its input, which the block adds afterwards.

    The activation's flag was changed, and its own output is right; the block is what uses the overwritten tensor. So
    either may be named.
    """
    pair.at("mix.act").inplace = True


@conv.fault("container", at="blocks.0")
def shortcut_missing(pair: Pair) -> None:
    """A residual block does not add its input."""
    pair.rewrite("out = out + identity", "out = out")


@conv.fault("container", at="")
def skip_mirrored(pair: Pair) -> None:
    """The root flips the skip connection that it adds to the upsampled map."""
    pair.rewrite("self.upsample(x) + skip", "self.upsample(x) + skip.flip(3)")


@conv.fault("dtype", at="blocks.1.pointwise")
def half_overflows(pair: Pair) -> None:
    """One convolution computes in float16 on weights of 1e5, which are infinite there."""
    for block in pair.both("blocks.1"):
        block.pointwise.weight[0, 0] = 1e5
        block.bn2.weight[0] = 1e-5
    pair.rewrite("(input, self.weight, self.bias)", "(input.half(), self.weight.half(), self.bias).float()")


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


@conv.correct()
def channels_last(pair: Pair) -> None:
    """The candidate works on [N, H, W, C] between its first and its last layer."""
    model = pair.candidate
    model.__class__ = ConvNetChannelsLast
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d)):
            module.__class__ = type(type(module).__name__, (_ChannelsLast, type(module)), {})


@conv.correct()
def batch_norms_folded(pair: Pair) -> None:
    """Each batch norm that follows a convolution is folded into it and replaced by an identity."""
    model = pair.candidate
    model.stem[0], model.stem[1] = without_norm(model.stem[0], model.stem[1]), nn.Identity()
    for block in model.blocks:
        block.depthwise, block.bn1 = without_norm(block.depthwise, block.bn1), nn.Identity()
        block.pointwise, block.bn2 = without_norm(block.pointwise, block.bn2), nn.Identity()


@conv.correct()
def upsampled_by_a_matrix(pair: Pair) -> None:
    """The transposed convolution is a matrix product per pixel, in a module of another class."""
    pair.candidate.upsample = UpsampleByLinear(pair.candidate.upsample)


@conv.correct()
def written_in_place(pair: Pair) -> None:
    """The candidate adds residuals in place, into tensors that modules returned before; the reference does not."""
    for block in pair.candidate.blocks:
        assert isinstance(block, ResidualBlock)
        rewrite(block, "out = out + identity", "out += identity")
    assert isinstance(pair.candidate.mix, PreActivation)
    rewrite(pair.candidate.mix, "return x + mixed", "return mixed.add_(x)")


@conv.correct()
def not_in_place(pair: Pair) -> None:
    """The candidate's activations return new tensors where the reference's write into their input."""
    for module in pair.candidate.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False


unet = Suite("unet", vision_models.unet, lambda: images(30))


@unet.fault("argument", at="up1", kind=["miscalls", "introduces"], argument="x")
def concatenated_the_other_way_round(pair: Pair) -> None:
    """One decoder level puts the skip behind what comes from below."""
    pair.rewrite("torch.cat([skip, x], dim=1)", "torch.cat([x, skip], dim=1)")


@unet.fault("leaf", at="up2.up", reason=r"align_corners")
def corners_not_aligned(pair: Pair) -> None:
    """The upsampling module does not align corners."""
    pair.faulty.align_corners = False


@unet.fault("container", at="")
def auxiliary_output_nearest(pair: Pair) -> None:
    """The root interpolates its auxiliary map by nearest neighbours, in its own code; the main output is right."""
    pair.rewrite('mode="bilinear", align_corners=False', 'mode="nearest"')


@unet.fault("argument", at="", argument="skip")
def skip_after_the_pool(pair: Pair) -> None:
    """The root hands its last level the skip blurred: taken after pooling and upsampled again."""
    pair.rewrite("self.up2(up, x1)", "self.up2(up, F.interpolate(F.max_pool2d(x1, 2), size=x1.shape[2:]))")


@unet.fault("container", at="up1")
def padded_at_the_other_side(pair: Pair) -> None:
    """One level pads the odd row and column at the top left and not at the bottom right."""
    pair.rewrite(
        "[right // 2, right - right // 2, down // 2, down - down // 2]",
        "[right - right // 2, right // 2, down - down // 2, down // 2]",
    )


@unet.fault("leaf", at="down1.block.1", reason=r"\b(num_)?groups\b")
def group_norm_of_other_groups(pair: Pair) -> None:
    """A group norm has 2 groups and not 4."""
    pair.faulty.num_groups = 2


@unet.fault("leaf", at="down2.block.2", reason=r"hard[-_ ]?swish")
def silu_as_hard_swish(pair: Pair) -> None:
    """One SiLU is a hard swish, as mobile toolkits put in its place."""
    pair.candidate.down2.block[2] = nn.Hardswish()


@unet.fault("parameter", at="up1.up", reason=all_of(WEIGHT, ORDER))
def transposed_kernel_mirrored(pair: Pair) -> None:
    """The kernel of the transposed convolution is mirrored."""
    pair.faulty.weight.copy_(pair.faulty.weight.flip(2, 3))


@unet.fault("parameter", at="up1.up", reason=all_of(WEIGHT, f"{TRANSPOSED}|{ORDER}"))
def transposed_kernel_of_swapped_channels(pair: Pair) -> None:
    """The kernel of the square transposed convolution has input and output channels exchanged."""
    pair.faulty.weight.copy_(pair.faulty.weight.transpose(0, 1).clone())


@unet.fault("leaf", at="pool", reason=r"avgpool|average")
def shared_pool_takes_the_mean(pair: Pair) -> None:
    """The pooling, which is called twice, takes the mean."""
    pair.candidate.pool = nn.AvgPool2d(2)


@unet.fault("argument", at="", kind=["miscalls", "structure", "introduces"])
def pool_skipped_by_stride(pair: Pair) -> None:
    """The root takes every second pixel where it should pool, on its second level alone."""
    pair.rewrite("self.down2(self.pool(x2))", "self.down2(x2[..., :-1:2, :-1:2])")


@unet.fault("leaf", at="outc")
def last_row_not_written(pair: Pair) -> None:
    """The last convolution leaves the last row of pixels of the second image at zero, as a tiled kernel may."""
    pair.rewrite(
        "return self._conv_forward(input, self.weight, self.bias)",
        "out = self._conv_forward(input, self.weight, self.bias); out[1, :, -1] = 0; return out",
    )


@unet.several("inc.block.3", "up2.up", "aux")
def weight_interpolation_and_bias(pair: Pair) -> None:
    """A kernel mirrored, corners not aligned, and an auxiliary head without its bias."""
    pair.at("inc.block.3").weight.copy_(pair.at("inc.block.3").weight.flip(3))
    pair.at("aux").bias.zero_()
    pair.at("up2.up").align_corners = False


class _ChannelsLastInside(UNet):
    """The same network, with the image transposed (height for width) while it is inside."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = super().forward(x.transpose(2, 3))
        return {name: value.transpose(2, 3) for name, value in outputs.items()}


@unet.correct()
def height_and_width_exchanged(pair: Pair) -> None:
    """The candidate works on transposed images with transposed kernels: every tensor inside is transposed."""
    model = pair.candidate
    model.__class__ = _ChannelsLastInside
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


@unet.correct()
def blocks_regrouped(pair: Pair) -> None:
    """Convolution and norm of each block stand in one module, so that the numbers in the sequence mean others."""
    for name in ("inc", "down1", "down2"):
        block = pair.at(name).block
        pair.replace(
            nn.Sequential(_Normed(block[0], block[1]), block[2], _Normed(block[3], block[4]), block[5]),
            at=f"{name}.block",
        )


@unet.correct()
def padded_by_a_module(pair: Pair) -> None:
    """Convolutions do not pad; a module before each does, inside a sequence in its place."""
    for name in ("inc", "down1"):
        block = pair.at(name).block
        for place in (0, 3):
            block[place].padding = (0, 0)
            block[place] = nn.Sequential(nn.ZeroPad2d(1), block[place])


@unet.correct()
def concatenation_undone_by_weights(pair: Pair) -> None:
    """Both levels concatenate the other way round, and the weights that follow are ordered accordingly."""
    for name in ("up1", "up2"):
        up = pair.at(name)
        conv = up.conv.block[0]
        skip = conv.in_channels - 16
        rewrite(up, "torch.cat([skip, x], dim=1)", "torch.cat([x, skip], dim=1)")
        conv.weight.copy_(torch.cat([conv.weight[:, skip:], conv.weight[:, :skip]], dim=1))
