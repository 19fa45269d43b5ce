"""A residual net of bottlenecks: padding, groups, dilation, batch norms, pools, and who adds what when."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.faults.case import Pair, Suite
from bench.faults.reasons import BIAS, EPS, ORDER, PART, STATISTICS, WEIGHT, all_of
from bench.faults.vision_models import images, resnet_like, without_norm

suite = Suite("resnet_like", resnet_like, lambda: images(45, 3))


@suite.fault("leaf", at="context.0", reason=r"dilation")
def dilation_lost(pair: Pair) -> None:
    """The dilated depthwise convolution has dilation 1, and the padding that gives the same size."""
    pair.faulty.dilation = (1, 1)
    pair.faulty.padding = (1, 1)


@suite.fault("leaf", at="layer2.0.downsample.0", kind=["introduces", "miscalls"])
def stride_of_odd_pixels(pair: Pair) -> None:
    """The projection of the shortcut takes the odd pixels and not the even ones, in its own code."""
    pair.rewrite("(input, self.weight, self.bias)", "(input.roll((-1, -1), (2, 3)), self.weight, self.bias)")


@suite.fault("parameter", at="layer1.1.conv2", reason=all_of(WEIGHT, ORDER))
def groups_exchanged(pair: Pair) -> None:
    """A grouped convolution has the kernels of its two groups exchanged."""
    weight = pair.faulty.weight
    weight.copy_(weight.roll(len(weight) // 2, 0))


@suite.fault("leaf", at="context.1", reason=all_of(r"\brelu6\b", r"\brelu\b"))
def relu_for_relu6(pair: Pair) -> None:
    """The activation does not stop at 6, and few values are beyond."""
    for conv in pair.both("context.0"):
        conv.weight.mul_(12)
    pair.candidate.context[1] = nn.ReLU()


@suite.fault("leaf", at="context.3", reason=r"count_include_pad")
def padding_counted(pair: Pair) -> None:
    """The mean pooling does not count the zeros of its padding: only the border differs."""
    pair.faulty.count_include_pad = False


@suite.fault("leaf", at="maxpool", kind=["introduces", "structure"], inputs=lambda: images(47), reason=r"ceil_mode")
def pool_rounds_up(pair: Pair) -> None:
    """The pooling, which does not pad, rounds its output's size up: one row and one column more."""
    for pool in pair.both():
        pool.padding = 0
    pair.faulty.ceil_mode = True


@suite.fault("buffer", at="layer1.0.bn2", reason=STATISTICS)
def mean_and_variance_exchanged(pair: Pair) -> None:
    """A batch norm was loaded with its mean for its variance (made positive) and its variance for its mean."""
    norm = pair.faulty
    norm.running_mean, norm.running_var = norm.running_var, norm.running_mean.abs()


@suite.fault("parameter", at=["layer2.1.conv3", "layer2.1.bn3"])
def folded_without_the_mean(pair: Pair) -> None:
    """A batch norm was folded into its convolution, and the running mean was forgotten.

    The fold is in the convolution's data, and the identity stands where the batch norm was: only both together are
    wrong, so that either may be named.
    """
    block = pair.at("layer2.1")
    block.conv3, block.bn3 = without_norm(block.conv3, block.bn3, shift=False), nn.Identity()


@suite.fault("container", at="layer2.0")
def shortcut_not_projected_from_the_input(pair: Pair) -> None:
    """A block projects its activated input for the shortcut, which its in-place activation has not touched."""
    pair.rewrite("identity = self.downsample(x)", "identity = self.downsample(x.clamp(max=0.5))")


@suite.fault("container", at="layer1.1")
def activation_before_the_sum(pair: Pair) -> None:
    """A block activates before it adds its shortcut, not after."""
    pair.rewrite(
        "        out += identity\n        activated: Tensor = self.relu(out)",
        "        activated: Tensor = self.relu(out) + identity",
    )


@suite.fault("mode", at="bn1")
def stem_in_train_mode(pair: Pair) -> None:
    """The first batch norm is in train mode."""
    pair.faulty.train()


@suite.fault("leaf", at="layer2.0.bn2", reason=EPS)
def batch_norm_eps_of_another_framework(pair: Pair) -> None:
    """A batch norm has eps 1e-3 and not 1e-5: half a thousandth on channels of variance 1."""
    pair.faulty.eps = 1e-3


@suite.fault("parameter", at="layer1.0.bn3", reason=all_of(BIAS, rf"{PART}|\b5\b"))
def one_channel_of_a_norm(pair: Pair) -> None:
    """One channel of one batch norm has the bias of its neighbour."""
    pair.faulty.bias[5] = pair.faulty.bias[6] + 0.3


@suite.fault("argument", at="", kind=["miscalls", "introduces"], argument="input")
def flattened_channels_last(pair: Pair) -> None:
    """The root flattens a 2 x 2 map to the classifier with channels last."""
    for model in (pair.reference, pair.candidate):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model.avgpool, model.fc = nn.AdaptiveAvgPool2d(2), nn.Linear(128, 7)
    pair.candidate.fc.load_state_dict(pair.reference.fc.state_dict())
    pair.rewrite("torch.flatten(self.avgpool(x), 1)", "torch.flatten(self.avgpool(x).permute(0, 2, 3, 1), 1)")


@suite.several("bn1", "layer1.1", "fc", "layer2.0.downsample.1")
def four_at_once(pair: Pair) -> None:
    """A batch norm's eps of 0.1, a block without shortcut, a classifier with two rows exchanged, stale statistics."""
    pair.at("bn1").eps = 0.1
    pair.rewrite("        out += identity\n", "", at="layer1.1")
    weight = pair.at("fc").weight
    weight.copy_(weight[[1, 0, 2, 3, 4, 5, 6]])
    pair.at("layer2.0.downsample.1").reset_running_stats()


@suite.correct()
def folded(pair: Pair) -> None:
    """All batch norms are folded into the convolutions before them and replaced by identities."""
    for module in list(pair.candidate.modules()):
        for number in (1, 2, 3):
            conv, norm = getattr(module, f"conv{number}", None), getattr(module, f"bn{number}", None)
            if conv is not None and norm is not None:
                setattr(module, f"conv{number}", without_norm(conv, norm))
                setattr(module, f"bn{number}", nn.Identity())


class ConvReLU(nn.Conv2d):
    """A convolution that also activates, as toolkits fuse the two."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


@suite.correct()
def convolution_and_activation_fused(pair: Pair) -> None:
    """The stem's convolution, norm and activation are one module; identities stand in their places."""
    stem = without_norm(pair.candidate.conv1, pair.candidate.bn1)
    stem.__class__ = ConvReLU
    pair.candidate.conv1, pair.candidate.bn1, pair.candidate.relu = stem, nn.Identity(), nn.Identity()


@suite.correct()
def inner_channels_permuted(pair: Pair) -> None:
    """Between two 1x1 convolutions of a block (no groups in between) the channels stand in another order."""
    for model in (pair.reference, pair.candidate):
        old = model.layer1[1].conv2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            model.layer1[1].conv2 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    pair.candidate.layer1[1].conv2.load_state_dict(pair.reference.layer1[1].conv2.state_dict())
    block = pair.at("layer1.1")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    block.conv1.weight.copy_(block.conv1.weight[order])
    for tensor in (block.bn1.weight, block.bn1.bias, block.bn1.running_mean, block.bn1.running_var):
        tensor.copy_(tensor[order].clone())
    block.conv2.weight.copy_(block.conv2.weight[:, order])


@suite.correct()
def depthwise_as_full(pair: Pair) -> None:
    """The depthwise convolution is a full one whose kernel is zero off the diagonal."""
    old = pair.at("context.0")
    full = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
    full.weight.zero_()
    full.weight[range(64), range(64)] = old.weight[:, 0]
    full.bias = old.bias
    pair.candidate.context[0] = full


@suite.correct()
def memory_format(pair: Pair) -> None:
    """The candidate's weights are in channels_last memory format: other strides, the same shapes."""
    pair.candidate.to(memory_format=torch.channels_last)


@suite.correct()
def stages_flattened(pair: Pair) -> None:
    """The stages stand in one sequence below the first's name; the second is gone."""
    model = pair.candidate
    model.layer1 = nn.Sequential(*model.layer1, *model.layer2)
    model.layer2 = nn.Identity()


@suite.correct("clean", "drift")
def cast_to_bfloat16(pair: Pair) -> None:
    """The whole candidate is in bfloat16, and casts the images that it is handed."""
    pair.candidate.to(torch.bfloat16)
    pair.rewrite("self.conv1(x)", "self.conv1(x.bfloat16())", at="")
