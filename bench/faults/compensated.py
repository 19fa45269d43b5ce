"""One fault among changes that undo each other: what is folded, permuted or rotated around it is not at fault."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import correct_transformers as correct
from bench.faults import gpt2_rebuilt, gpt_neox, models, opt
from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import gpt2 as build_gpt2
from bench.faults.more_text_models import gpt_neox as build_gpt_neox
from bench.faults.more_text_models import left_padded
from bench.faults.more_text_models import opt as build_opt
from bench.faults.rewrite import rewrite

llama = Suite("compensated", models.llama, models.padded_uncached)
gpt = Suite("compensated", build_gpt2, models.padded_uncached)
neox = Suite("compensated", build_gpt_neox, models.padded_uncached)
padded_opt = Suite("compensated", build_opt, left_padded)


@llama.fault("parameter", at="model.layers.1.self_attn.o_proj")
def smoothed_and_a_row_flipped(pair: Pair) -> None:
    """Norms are smoothed as SmoothQuant does, and an output projection has a row of the wrong sign."""
    correct.norms_smoothed(pair)
    _flip(pair, "model.layers.1.self_attn.o_proj", 5)


@llama.fault("leaf", at="model.layers.0.mlp.act_fn")
def smoothed_and_another_activation(pair: Pair) -> None:
    """Norms are smoothed, and one MLP's activation is a GELU: the folded norm before it is in another container."""
    correct.norms_smoothed(pair)
    pair.at("model.layers.0.mlp").act_fn = nn.GELU()


@llama.fault("container", at="model.layers.0", kind=["miscalls", "introduces"])
def smoothed_and_a_residual_lost(pair: Pair) -> None:
    """Norms are smoothed, and one layer forgets the residual after attention."""
    correct.norms_smoothed(pair)
    rewrite(
        pair.at("model.layers.0"),
        "        hidden_states = residual + hidden_states\n\n        # Fully Connected",
        "        # Fully Connected",
    )


@llama.fault("parameter", at="model.layers.1.mlp.down_proj")
def channels_permuted_and_a_row_zero(pair: Pair) -> None:
    """The hidden channels of the MLPs are permuted, and one projection has a row of zeros."""
    correct.hidden_channels_permuted(pair)
    with torch.no_grad():
        pair.at("model.layers.1.mlp.down_proj").weight[8].zero_()


@llama.fault("container", at="model.layers.1.mlp", kind=["miscalls", "introduces"])
def channels_permuted_and_halves_swapped(pair: Pair) -> None:
    """The hidden channels of the MLPs are permuted, and one MLP activates the other half."""
    correct.hidden_channels_permuted(pair)
    rewrite(
        pair.at("model.layers.1.mlp"),
        "self.act_fn(self.gate_proj(x)) * self.up_proj(x)",
        "self.gate_proj(x) * self.act_fn(self.up_proj(x))",
    )


@llama.fault(
    "parameter", at=["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"]
)
def one_of_three_not_permuted(pair: Pair) -> None:
    """The hidden channels are permuted, and one gate projection was forgotten: it, or the other two, are wrong."""
    correct.hidden_channels_permuted(pair)
    original = pair.reference.get_submodule("model.layers.0.mlp.gate_proj")
    pair.at("model.layers.0.mlp.gate_proj").load_state_dict(original.state_dict())


@llama.fault("parameter", at="model.layers.1.self_attn.q_proj")
def key_scale_folded_and_a_query_row_flipped(pair: Pair) -> None:
    """The scale of attention is in the key weights, and a row of the queries has the wrong sign."""
    correct.scale_folded_into_keys(pair)
    _flip(pair, "model.layers.1.self_attn.q_proj", 3)


@llama.fault("parameter", at="model.layers.0.mlp.up_proj")
def values_rotated_and_a_row_flipped(pair: Pair) -> None:
    """Values are rotated per head and rotated back, and a row of an MLP has the wrong sign."""
    correct.values_rotated_per_head(pair)
    _flip(pair, "model.layers.0.mlp.up_proj", 9)


@llama.fault("container", at="model.layers.0.self_attn", kind=["miscalls", "introduces"])
def values_rotated_and_another_scale(pair: Pair) -> None:
    """Values are rotated per head and rotated back, and one attention divides by the root of the hidden size."""
    correct.values_rotated_per_head(pair)
    pair.at("model.layers.0.self_attn").scaling = 64**-0.5


@llama.fault("leaf", at="model.layers.1.mlp.act_fn")
def stream_rotated_and_another_activation(pair: Pair) -> None:
    """The residual stream is rotated, and one activation is a GELU: inside an MLP nothing is rotated."""
    correct.residual_stream_rotated(pair)
    pair.at("model.layers.1.mlp").act_fn = nn.GELU()


@llama.fault("parameter", at="model.layers.0.self_attn.v_proj")
def stream_rotated_and_a_row_flipped(pair: Pair) -> None:
    """The residual stream is rotated, and a row of the values has the wrong sign."""
    correct.residual_stream_rotated(pair)
    _flip(pair, "model.layers.0.self_attn.v_proj", 2)


@llama.fault("argument", at="model", kind="miscalls", argument="attention_mask")
def stream_rotated_and_padding_lost(pair: Pair) -> None:
    """The residual stream is rotated, and the model makes its mask without the padding."""
    correct.residual_stream_rotated(pair)
    rewrite(pair.at("model"), "            attention_mask=attention_mask,", "            attention_mask=None,")


@gpt.fault("container", at="transformer.h.0", kind=["miscalls", "introduces"])
def norms_folded_and_a_residual_lost(pair: Pair) -> None:
    """The norms are folded into the projections after them, and one block forgets its first residual."""
    gpt2_rebuilt.norms_folded(pair)
    rewrite(pair.at("transformer.h.0"), "hidden_states = attn_output + residual", "hidden_states = attn_output")


@gpt.fault("parameter", at="transformer.h.1.mlp.c_proj")
def norms_folded_and_a_bias_lost(pair: Pair) -> None:
    """The norms are folded, and a bias behind an activation is zero."""
    gpt2_rebuilt.norms_folded(pair)
    with torch.no_grad():
        pair.at("transformer.h.1.mlp.c_proj").bias.zero_()


@neox.fault("container", at="gpt_neox.layers.1")
def norms_folded_and_the_residual_forgotten(pair: Pair) -> None:
    """The norms are folded, and the last layer forgets its residual."""
    gpt_neox.norm_weights_folded(pair)
    rewrite(pair.at("gpt_neox.layers.1"), "mlp_output + attn_output + hidden_states", "mlp_output + attn_output")


@padded_opt.fault("parameter", at="model.decoder.layers.1.self_attn.out_proj")
def value_bias_moved_and_a_row_flipped(pair: Pair) -> None:
    """The values' bias is in the output projection's, and one of its rows has the wrong sign."""
    opt.value_bias_moved(pair)
    _flip(pair, "model.decoder.layers.1.self_attn.out_proj", 6)


@padded_opt.fault("argument", at="model.decoder.layers.0", kind="miscalls", argument="attention_mask")
def scale_folded_and_the_mask_lost(pair: Pair) -> None:
    """The queries' scale is in their weights, and one layer hands its attention no mask."""
    opt.scale_folded_into_queries(pair)
    rewrite(pair.at("model.decoder.layers.0"), "attention_mask=attention_mask", "attention_mask=None")


def _flip(pair: Pair, path: str, row: int) -> None:
    with torch.no_grad():
        pair.at(path).weight[row].neg_()
