"""An MLP mixer, in which axes are exchanged between modules, and numbers that end: overflow, NaN, uninitialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults.case import Pair, Suite
from bench.faults.reasons import BIAS, EXCHANGED, NON_FINITE, PART, WEIGHT, all_of
from bench.faults.rewrite import rewrite
from bench.faults.vision_models import images, trained

WIDTH, PATCHES = 24, 16


class Mlp(nn.Sequential):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class LogNorm(nn.Module):
    """Norms by the logarithm of the energy per token, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        energy = x.pow(2).mean(-1, keepdim=True)
        normed: Tensor = self.weight * x / torch.log1p(energy).sqrt()
        return normed


class MixerBlock(nn.Module):
    """Mixes tokens, then channels: [N, T, C] to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = LogNorm(), nn.LayerNorm(WIDTH)
        self.tokens, self.channels = Mlp(PATCHES, 20), Mlp(WIDTH, 48)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x).transpose(1, 2)
        x = x + self.tokens(y).transpose(1, 2)
        mixed: Tensor = self.channels(self.norm2(x))
        return x + mixed


class Mixer(nn.Module):
    """Patches by unfolding, four blocks, the mean over tokens: [N, 3, 32, 32] to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 64, WIDTH)
        self.blocks = nn.ModuleList([MixerBlock() for _ in range(4)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 6)

    def forward(self, image: Tensor) -> Tensor:
        n = image.shape[0]
        patches = image.view(n, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(n, PATCHES, -1)
        x = self.embed(patches)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


mixer = trained(Mixer)
suite = Suite("mlp_mixer", mixer, images)


@suite.fault("argument", at="", argument="input")
def patches_flattened_channels_last(pair: Pair) -> None:
    """The root flattens each patch with its channels last."""
    pair.rewrite("permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 4, 3, 5, 1)")


@suite.fault("container", at="blocks.1")
def tokens_reshaped_and_not_transposed(pair: Pair) -> None:
    """One block reshapes to channels first where it should transpose: the sizes are right."""
    pair.rewrite("self.norm1(x).transpose(1, 2)", "self.norm1(x).reshape(len(x), WIDTH, PATCHES)")


@suite.fault("container", at="blocks.2")
def parallel_and_not_serial(pair: Pair) -> None:
    """One block mixes channels of its input and not of what the mixing of tokens gave."""
    pair.rewrite("self.channels(self.norm2(x))", "self.channels(self.norm2(x - self.tokens(y).transpose(1, 2)))")


@suite.fault("leaf", at="blocks.3.norm1")
def log_of_another_base(pair: Pair) -> None:
    """One norm takes the logarithm to base 2: a factor on all that it returns."""
    pair.rewrite("torch.log1p(energy)", "torch.log2(1 + energy)")


@suite.fault("leaf", at="blocks.1.norm1", kind="non_finite", reason=NON_FINITE)
def log_of_a_negative(pair: Pair) -> None:
    """One norm takes the logarithm without adding 1, whose root is NaN for tokens of little energy."""
    pair.rewrite("torch.log1p(energy)", "torch.log(energy)")


@suite.fault("dtype", at="blocks.2.channels.0")
def half_overflows_in_one_channel(pair: Pair) -> None:
    """One layer computes in float16, where one row of its weight is beyond the range."""
    for channels in pair.both("blocks.2.channels"):
        channels[0].weight[5].mul_(400_000)
        channels[2].weight[:, 5].div_(400_000)
    pair.rewrite("(input, self.weight, self.bias)", "(input.half(), self.weight.half(), self.bias.half()).float()")


@suite.fault("parameter", at="blocks.0.tokens.0", reason=all_of(WEIGHT, PART))
def uninitialised_rows(pair: Pair) -> None:
    """Two rows of a weight hold what was in memory: very small numbers and one large one."""
    weight = pair.faulty.weight
    weight[3:5] = 1e-38
    weight[4, 2] = 3e3


@suite.fault(
    "parameter",
    at=["blocks.1", "blocks.2"] + [f"blocks.{b}.{m}" for b in (1, 2) for m in ("tokens", "tokens.0", "tokens.2")],
    reason=all_of(f"{WEIGHT}|{BIAS}", EXCHANGED),
)
def two_mlps_exchanged(pair: Pair) -> None:
    """Two blocks have each other's token mixing: each module of both is wrong, so any may be named first."""
    first, second = pair.at("blocks.1"), pair.at("blocks.2")
    first.tokens, second.tokens = second.tokens, first.tokens


@suite.fault("container", at="")
def one_token_left_out(pair: Pair) -> None:
    """The root's mean leaves out the last token, as if a class token stood there."""
    pair.rewrite("self.norm(x).mean(1)", "self.norm(x)[:, :-1].mean(1)")


@suite.fault("container", at="", kind=["miscalls", "introduces", "structure"])
def a_block_skipped(pair: Pair) -> None:
    """The root does not call its third block."""
    pair.rewrite("for block in self.blocks:", "for block in (*self.blocks[:2], self.blocks[3]):")


@suite.fault("container", at="", kind=["miscalls", "introduces", "structure"])
def a_block_called_twice(pair: Pair) -> None:
    """The root calls its first block twice and leaves out its second."""
    pair.rewrite("for block in self.blocks:", "for block in (self.blocks[0], *self.blocks[:1], *self.blocks[2:]):")


@suite.fault("container", at="", kind=["miscalls", "introduces", "structure"])
def blocks_in_another_order(pair: Pair) -> None:
    """The root calls its blocks from last to first."""
    pair.rewrite("for block in self.blocks:", "for block in reversed(self.blocks):")


@suite.several("blocks.0.tokens.2", "blocks.2.norm2", "blocks.3")
def weight_norm_and_block(pair: Pair) -> None:
    """A row of a weight with the opposite sign, a norm of eps 0.1, and a block that transposes wrongly."""
    pair.at("blocks.0.tokens.2").weight[7].neg_()
    pair.at("blocks.2.norm2").eps = 0.1
    pair.rewrite("self.norm1(x).transpose(1, 2)", "self.norm1(x).reshape(len(x), WIDTH, PATCHES)", at="blocks.3")


class _Patchify(nn.Module):
    """The embedding as a convolution with stride 8."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 8, stride=8)
        with torch.no_grad():
            self.conv.weight.copy_(linear.weight.view(WIDTH, 3, 8, 8))
            self.conv.bias = linear.bias

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.conv(image).flatten(2).transpose(1, 2)
        return out


@suite.correct()
def embedded_by_a_convolution(pair: Pair) -> None:
    """The candidate hands the whole image to its embedding, a convolution: another argument, the same output."""
    pair.candidate.embed = _Patchify(pair.candidate.embed)
    pair.rewrite("self.embed(patches)", "self.embed(image)", at="")


@suite.correct()
def tokens_mixed_without_transposes(pair: Pair) -> None:
    """Token mixing takes and returns [N, T, C]: its layers transpose inside."""
    for block in pair.candidate.blocks:
        block.tokens[0] = _OverTokens(block.tokens[0])
        block.tokens[2] = _OverTokens(block.tokens[2])
        rewrite(
            block,
            "self.norm1(x).transpose(1, 2)\n        x = x + self.tokens(y).transpose(1, 2)",
            "self.norm1(x)\n        x = x + self.tokens(y)",
        )


class _OverTokens(nn.Module):
    """A linear layer over the second axis."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return torch.einsum("ntc,ot->noc", x, self.weight) + self.bias[:, None]


@suite.correct()
def hidden_units_permuted(pair: Pair) -> None:
    """The hidden units of each channel mixing are in another order."""
    for place, block in enumerate(pair.candidate.blocks):
        order = torch.randperm(48, generator=torch.Generator().manual_seed(place))
        block.channels[0].weight.copy_(block.channels[0].weight[order])
        block.channels[0].bias.copy_(block.channels[0].bias[order])
        block.channels[2].weight.copy_(block.channels[2].weight[:, order])


@suite.correct("clean", "drift")
def in_bfloat16(pair: Pair) -> None:
    """The candidate is in bfloat16."""
    pair.candidate.to(torch.bfloat16)
    pair.rewrite("self.embed(patches)", "self.embed(patches.bfloat16())", at="")
