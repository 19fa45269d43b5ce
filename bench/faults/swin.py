"""Swin: shifted windows, relative position biases, merged patches."""

from __future__ import annotations

import copy

import torch

from bench.faults.case import Pair, Suite
from bench.faults.more_vision_models import images, swin
from bench.faults.rewrite import rewrite

suite = Suite("swin", swin, lambda: {"pixel_values": images()})
LAYER = "swin.encoder.layers.0.blocks.1"


@suite.fault("leaf", at=LAYER, kind=["miscalls", "introduces"])
def window_not_shifted(pair: Pair) -> None:
    """A layer that should shift its windows does not: an attribute of the layer."""
    pair.at(LAYER).shift_size = 0


@suite.fault("container", at=LAYER, kind=["miscalls", "introduces"])
def shifted_the_other_way(pair: Pair) -> None:
    """A layer shifts its windows the other way, there and back; the mask stays."""
    rewrite(
        pair.at(LAYER), "direction = 1 if reverse else -1", "direction = -1 if reverse else 1", within="cyclic_shift"
    )


@suite.fault("argument", at=LAYER, kind="miscalls", argument="attention_mask")
def windows_see_across_the_border(pair: Pair) -> None:
    """A shifted layer hands its attention no mask."""
    rewrite(
        pair.at(LAYER),
        "self.attention(hidden_states_windows, attn_mask,",
        "self.attention(hidden_states_windows, None,",
    )


@suite.fault("argument", at=LAYER, kind="miscalls", argument="attention_mask")
def mask_of_rows_alone(pair: Pair) -> None:
    """The mask of a shifted layer tells regions apart by row alone."""
    rewrite(
        pair.at(LAYER),
        "h_region[None, :, None, None] * 3 + w_region[None, None, :, None]",
        "h_region[None, :, None, None] * 3 + 0 * w_region[None, None, :, None]",
        within="get_attn_mask",
    )


@suite.fault("container", at=LAYER, kind=["miscalls", "introduces"])
def never_shifted_back(pair: Pair) -> None:
    """A layer shifts windows and does not shift them back after attention."""
    rewrite(pair.at(LAYER), "reverse=True\n        )", "reverse=True\n        ).roll((-2, -2), (1, 2))")


@suite.fault("buffer", at=f"{LAYER}.attention.relative_position_bias")
def relative_index_transposed(pair: Pair) -> None:
    """The index into one table of relative biases is transposed: keys for queries."""
    bias = pair.at(f"{LAYER}.attention.relative_position_bias")
    bias.relative_position_index = bias.relative_position_index.view(16, 16).t().reshape(-1).clone()


@suite.fault("parameter", at="swin.encoder.layers.1.blocks.0.attention.relative_position_bias")
def relative_table_of_rows_and_columns(pair: Pair) -> None:
    """A table of relative biases is stored column by column."""
    table = pair.at("swin.encoder.layers.1.blocks.0.attention.relative_position_bias").relative_position_bias_table
    with torch.no_grad():
        table.copy_(table.view(7, 7, -1).transpose(0, 1).reshape(49, -1))


@suite.fault("argument", at="swin.encoder.layers.0.downsample", kind=["miscalls", "introduces"], argument="input")
def patches_merged_in_another_order(pair: Pair) -> None:
    """The four neighbours that are merged stand in row order and not in column order."""
    rewrite(
        pair.at("swin.encoder.layers.0.downsample"),
        "for col in range(2) for row in range(2)",
        "for row in range(2) for col in range(2)",
    )


@suite.fault("container", at="swin.encoder.layers.1.blocks.1.attention", kind=["miscalls", "introduces"])
def bias_of_one_head_missing(pair: Pair) -> None:
    """One attention drops the relative bias of its last head, between the bias's module and the softmax."""
    rewrite(
        pair.at("swin.encoder.layers.1.blocks.1.attention"),
        "            combined_mask = relative_position_bias\n",
        "            combined_mask = relative_position_bias.clone()\n            combined_mask[:, -1] = 0\n",
    )


@suite.fault("argument", at="swin", kind=["miscalls", "introduces", "structure"])
def pooled_before_the_norm(pair: Pair) -> None:
    """The model pools what the encoder returned, not what its norm did; nothing else reads the norm."""
    rewrite(
        pair.at("swin"),
        "self.pooler(sequence_output.transpose(1, 2))",
        "self.pooler(encoder_outputs.last_hidden_state.transpose(1, 2))",
    )


@suite.fault("leaf", at="swin.encoder.layers.0.blocks.0.layernorm_before")
def eps_of_the_default(pair: Pair) -> None:
    """One LayerNorm has eps 1e-3."""
    pair.at("swin.encoder.layers.0.blocks.0.layernorm_before").eps = 1e-3


@suite.fault("parameter", at="swin.encoder.layers.1.blocks.0.attention.q_proj")
def one_head_rotated(pair: Pair) -> None:
    """The query weights of one head hold their halves exchanged."""
    with torch.no_grad():
        weight = pair.at("swin.encoder.layers.1.blocks.0.attention.q_proj").weight
        weight[16:32] = weight[16:32].roll(8, 0)


@suite.several("swin.embeddings", f"{LAYER}.mlp.fc1", "classifier")
def positions_weight_and_classifier(pair: Pair) -> None:
    """Positions transposed, a bias lost, and a classifier with two rows exchanged."""
    with torch.no_grad():
        positions = pair.at("swin.embeddings").position_embeddings
        positions.copy_(positions.view(1, 8, 8, -1).transpose(1, 2).reshape(1, 64, -1))
        pair.at(f"{LAYER}.mlp.fc1").bias.zero_()
        weight = pair.at("classifier").weight
        weight[[0, 1]] = weight[[1, 0]]


@suite.correct()
def fused_attention(pair: Pair) -> None:
    """The candidate uses torch's scaled_dot_product_attention."""
    pair.candidate.set_attn_implementation("sdpa")


@suite.correct()
def roll_undone(pair: Pair) -> None:
    """Shift and mask are those of a shift by two, written as a concatenation."""
    layer = pair.at(LAYER)
    assert layer.shift_size == 2
    rewrite(
        layer,
        "            hidden_states = torch.roll(\n                hidden_states,\n"
        "                shifts=(direction * self.shift_size, direction * self.shift_size),\n"
        "                dims=(1, 2),\n            )\n",
        "            step = -direction * self.shift_size\n"
        "            hidden_states = torch.cat([hidden_states[:, step:], hidden_states[:, :step]], dim=1)\n"
        "            hidden_states = torch.cat([hidden_states[:, :, step:], hidden_states[:, :, :step]], dim=2)\n",
        within="cyclic_shift",
    )


@suite.correct()
def keys_scaled(pair: Pair) -> None:
    """In all attentions the scale is folded into the queries, and biases into the table as they were."""
    for module in pair.candidate.modules():
        if type(module).__name__ == "SwinAttention":
            with torch.no_grad():
                module.q_proj.weight.mul_(module.scaling)
                module.q_proj.bias.mul_(module.scaling)
            module.scaling = 1.0


@suite.correct()
def norm_weights_folded(pair: Pair) -> None:
    """The weights of each norm before an MLP are in the MLP's first layer."""
    for module in pair.candidate.modules():
        if type(module).__name__ == "SwinLayer":
            norm, linear = module.layernorm_after, copy.deepcopy(module.mlp.fc1)
            with torch.no_grad():
                linear.bias.add_(linear.weight @ norm.bias)
                linear.weight.mul_(norm.weight)
                norm.weight.fill_(1)
                norm.bias.zero_()
            module.mlp.fc1 = linear
