"""Mixtral: faults in router, experts and the block that joins them."""

from __future__ import annotations

import torch

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("mixtral", models.mixtral, models.uncached)


@suite.fault("leaf", at="model.layers.0.mlp.gate")
def routing_weights_not_normalised(pair: Pair) -> None:
    """The router does not divide its two weights by their sum: its own code, and it calls nothing."""
    rewrite(
        pair.at("model.layers.0.mlp.gate"), "router_top_value /= router_top_value.sum(dim=-1, keepdim=True)", "pass"
    )


@suite.fault("leaf", at="model.layers.1.mlp.gate", kind=["introduces", "structure"])
def one_expert_for_two(pair: Pair) -> None:
    """The router picks one expert per token: its attribute top_k is wrong, and its outputs have another shape."""
    pair.at("model.layers.1.mlp.gate").top_k = 1


@suite.fault("leaf", at="model.layers.1.mlp.experts")
def gate_and_up_swapped(pair: Pair) -> None:
    """The experts activate the other half of their fused projection."""
    rewrite(pair.at("model.layers.1.mlp.experts"), "gate, up = nn.functional", "up, gate = nn.functional")


@suite.fault("parameter", at="model.layers.0.mlp.experts")
def one_expert_never_loaded(pair: Pair) -> None:
    """The down projection of expert 2 is zero; the other experts are right, so only its tokens differ."""
    with torch.no_grad():
        pair.at("model.layers.0.mlp.experts").down_proj[2].zero_()


@suite.fault("parameter", at="model.layers.1.mlp.gate")
def router_rows_exchanged(pair: Pair) -> None:
    """Two rows of the router's weight changed places, and the experts did not."""
    with torch.no_grad():
        weight = pair.at("model.layers.1.mlp.gate").weight
        weight.copy_(weight[[1, 0, 2, 3]])


@suite.fault("argument", at="model.layers.0.mlp", kind="miscalls", argument="top_k_weights")
def routing_weights_in_wrong_order(pair: Pair) -> None:
    """The block hands its experts the two weights of each token the wrong way round."""
    rewrite(
        pair.at("model.layers.0.mlp"),
        "self.experts(hidden_states, top_k_index, top_k_weights)",
        "self.experts(hidden_states, top_k_index, top_k_weights.flip(-1))",
    )


@suite.fault("argument", at="model.layers.1", kind="miscalls", argument="hidden_states")
def block_reads_the_residual(pair: Pair) -> None:
    """The layer hands its experts' block the residual, although it did call the norm."""
    rewrite(pair.at("model.layers.1"), "self.mlp(hidden_states)", "self.mlp(residual)")


@suite.fault("container", at="model.layers.1.self_attn", kind=["miscalls", "introduces"])
def heads_reversed(pair: Pair) -> None:
    """Attention joins its heads in reverse order before the output projection."""
    rewrite(
        pair.at("model.layers.1.self_attn"),
        "attn_output.reshape(*input_shape, -1)",
        "attn_output.flip(2).reshape(*input_shape, -1)",
    )
