"""Mamba: a state space without attention, whose mixer reads the weights of modules that it does not call."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import mamba
from bench.faults.rewrite import rewrite

suite = Suite("mamba", mamba, models.uncached)
MIXERS = [f"backbone.layers.{layer}.mixer" for layer in range(2)]


@suite.fault("parameter", at=MIXERS[0])
def decay_of_one_channel(pair: Pair) -> None:
    """One channel's decay is another one's: a parameter of the mixer itself."""
    with torch.no_grad():
        pair.at(MIXERS[0]).A_log[5].add_(1.0)


@suite.fault("parameter", at=MIXERS[1])
def skip_never_loaded(pair: Pair) -> None:
    """The mixer's skip D is zero."""
    with torch.no_grad():
        pair.at(MIXERS[1]).D.zero_()


@suite.fault("parameter", at=[MIXERS[0], f"{MIXERS[0]}.conv1d"])
def kernel_mirrored(pair: Pair) -> None:
    """A kernel is mirrored. Its module is never called: the mixer reads its weight, so either may be named."""
    with torch.no_grad():
        weight = pair.at(f"{MIXERS[0]}.conv1d").weight
        weight.copy_(weight.flip(-1))


@suite.fault("parameter", at=[MIXERS[1], f"{MIXERS[1]}.dt_proj"])
def time_step_bias_lost(pair: Pair) -> None:
    """The bias of the time step is zero. Its module is never called: the mixer reads its bias."""
    with torch.no_grad():
        pair.at(f"{MIXERS[1]}.dt_proj").bias.zero_()


@suite.fault("container", at=MIXERS[1], kind=["miscalls", "introduces"])
def input_and_output_maps_exchanged(pair: Pair) -> None:
    """B and C are taken from x_proj in the wrong order."""
    rewrite(pair.at(MIXERS[1]), "time_step, B, C = torch.split(", "time_step, C, B = torch.split(")


@suite.fault("container", at=MIXERS[0], kind=["miscalls", "introduces"])
def gate_exchanged(pair: Pair) -> None:
    """The mixer takes the first half of its projection for the gate."""
    rewrite(
        pair.at(MIXERS[0]), "hidden_states_B_C, gate = projected_states", "gate, hidden_states_B_C = projected_states"
    )


@suite.fault("container", at="backbone.layers.0", kind=["miscalls", "introduces"])
def residual_forgotten(pair: Pair) -> None:
    """The first block returns its mixer's output alone."""
    rewrite(pair.at("backbone.layers.0"), "hidden_states = residual + hidden_states", "pass")


@suite.fault("leaf", at="backbone.layers.1.norm")
def norm_eps(pair: Pair) -> None:
    """A norm has eps 1e-3 and not 1e-5."""
    pair.at("backbone.layers.1.norm").variance_epsilon = 1e-3


@suite.several(f"{MIXERS[0]}.x_proj", f"{MIXERS[1]}.out_proj")
def two_projections(pair: Pair) -> None:
    """A row of one projection is zero, and two rows of another one changed places."""
    with torch.no_grad():
        pair.at(f"{MIXERS[0]}.x_proj").weight[6].zero_()
        weight = pair.at(f"{MIXERS[1]}.out_proj").weight
        weight[[0, 1]] = weight[[1, 0]]


@suite.fault("parameter", at="lm_head")
def head_tied_by_mistake(pair: Pair) -> None:
    """The head shares the embedding's weight where it should have one of its own."""
    pair.at("lm_head").weight = pair.at("backbone.embeddings").weight


@suite.correct()
def inner_channels_permuted(pair: Pair) -> None:
    """The inner channels of each mixer are in another order, in all of its tensors."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    both = torch.cat((order, order + 64))
    with torch.no_grad():
        for path in MIXERS:
            mixer = pair.at(path)
            mixer.in_proj.weight.copy_(mixer.in_proj.weight[both])
            for tensor in (mixer.conv1d.weight, mixer.conv1d.bias, mixer.A_log, mixer.D):
                tensor.copy_(tensor[order])
            for tensor in (mixer.dt_proj.weight, mixer.dt_proj.bias):
                tensor.copy_(tensor[order])
            for linear in (mixer.x_proj, mixer.out_proj):
                linear.weight.copy_(linear.weight[:, order])


@suite.correct()
def norms_folded(pair: Pair) -> None:
    """The norms' weights are in the projections after them."""
    with torch.no_grad():
        for block in pair.at("backbone").layers:
            block.mixer.in_proj.weight.mul_(block.norm.weight)
            nn.init.ones_(block.norm.weight)
