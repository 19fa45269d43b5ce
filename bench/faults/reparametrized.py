"""Candidates that are re-parametrized rightly and carry one ordinary fault besides: that fault is the answer.

What the re-parametrization changes inside is undone inside, so naming it is as wrong as on the correct pairs, and
handing the candidate tensors in the reference's own terms breaks what was right.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import correct_transformers as correct
from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("reparametrized", models.llama, models.uncached)
LAYERS = range(2)
_LAST_RESIDUAL = "hidden_states = self.mlp(hidden_states)\n        hidden_states = residual + hidden_states"


def _scale_row(pair: Pair, path: str, row: int = 17) -> None:
    with torch.no_grad():
        pair.at(path).weight[row].mul_(1.5)


def _drop_mask(pair: Pair) -> None:
    rewrite(pair.at("model"), "attention_mask=causal_mask", "attention_mask=None")


def _interleave(pair: Pair) -> None:
    """Rotary pairs are neighbours and not halves apart, in the rows of the weights as in attention's code."""
    for layer in LAYERS:
        attention = pair.at(f"model.layers.{layer}.self_attn")
        with torch.no_grad():
            for linear in (attention.q_proj, attention.k_proj):
                heads = linear.weight.unflatten(0, (-1, 2, 8))
                linear.weight.copy_(heads.transpose(1, 2).reshape(linear.weight.shape))
        rewrite(
            attention,
            "q_embed = (q * cos) + (rotate_half(q) * sin)\n    k_embed = (k * cos) + (rotate_half(k) * sin)",
            "cos, sin = (t[..., :8].repeat_interleave(2, -1) for t in (cos, sin))\n"
            "    q_embed = (q * cos) + (torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2) * sin)\n"
            "    k_embed = (k * cos) + (torch.stack((-k[..., 1::2], k[..., ::2]), -1).flatten(-2) * sin)",
            within="apply_rotary_pos_emb",
        )


@suite.correct()
def rotary_interleaved(pair: Pair) -> None:
    """Rotary pairs are neighbours, in the weights and in the code: queries and keys are reordered, logits are not."""
    _interleave(pair)


@suite.fault("parameter", at="model.layers.1.self_attn.v_proj")
def rotary_interleaved_value_row_scaled(pair: Pair) -> None:
    """Queries and keys are interleaved, which is right; a row of the values' weight is 1.5 times too large."""
    _interleave(pair)
    _scale_row(pair, "model.layers.1.self_attn.v_proj")


@suite.fault("parameter", at="model.layers.0.self_attn.k_proj")
def rotary_interleaved_key_row_scaled(pair: Pair) -> None:
    """Queries and keys are interleaved, which is right; a row of the keys' weight is 1.5 times too large."""
    _interleave(pair)
    _scale_row(pair, "model.layers.0.self_attn.k_proj")


@suite.fault("parameter", at="model.layers.0.self_attn.k_proj")
def rotary_interleaved_key_row_flipped(pair: Pair) -> None:
    """Queries and keys are interleaved, which is right; a row of the keys' weight has the opposite sign.

    Reordered and with a sign flipped, the keys are still a rotation of the reference's: by their values alone they are
    as right as before.
    """
    _interleave(pair)
    with torch.no_grad():
        pair.at("model.layers.0.self_attn.k_proj").weight[17].neg_()


@suite.fault("leaf", at="model.layers.1.input_layernorm")
def scale_folded_and_eps(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right; a norm has the default eps."""
    correct.scale_folded_into_keys(pair)
    pair.at("model.layers.1.input_layernorm").variance_epsilon = 1e-4


@suite.fault("parameter", at="model.layers.0.self_attn.q_proj")
def scale_folded_and_query_row_scaled(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right; a row of the queries' is 1.5 times too large."""
    correct.scale_folded_into_keys(pair)
    _scale_row(pair, "model.layers.0.self_attn.q_proj")


@suite.fault("parameter", at="model.layers.0.self_attn.k_proj")
def scale_folded_and_key_row_scaled(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right, and one row of those is too large."""
    correct.scale_folded_into_keys(pair)
    _scale_row(pair, "model.layers.0.self_attn.k_proj")


@suite.fault("call", at="model", kind="miscalls", argument="attention_mask")
def scale_folded_and_no_mask(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right; the model hands its layers no mask."""
    correct.scale_folded_into_keys(pair)
    _drop_mask(pair)


@suite.fault("parameter", at="model.layers.1.mlp.down_proj")
def norms_smoothed_and_row_scaled(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; a row of an MLP's last weight is too large."""
    correct.norms_smoothed(pair)
    _scale_row(pair, "model.layers.1.mlp.down_proj")


@suite.fault("parameter", at="model.layers.0.self_attn.q_proj")
def norms_smoothed_and_query_row_scaled(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; a row of one of those is too large."""
    correct.norms_smoothed(pair)
    _scale_row(pair, "model.layers.0.self_attn.q_proj")


@suite.fault("leaf", at="model.layers.1.post_attention_layernorm")
def norms_smoothed_and_eps(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; one of the norms has another eps as well."""
    correct.norms_smoothed(pair)
    pair.at("model.layers.1.post_attention_layernorm").variance_epsilon = 1e-3


@suite.fault("container", at="model.layers.1")
def norms_smoothed_and_residual_dropped(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; a layer leaves out its last residual."""
    correct.norms_smoothed(pair)
    rewrite(pair.at("model.layers.1"), _LAST_RESIDUAL, "hidden_states = self.mlp(hidden_states)")


@suite.fault("call", at="model", kind="miscalls", argument="attention_mask")
def norms_smoothed_and_no_mask(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; the model hands its layers no mask."""
    correct.norms_smoothed(pair)
    _drop_mask(pair)


@suite.fault("leaf", at="model.layers.0.mlp.act_fn")
def channels_permuted_and_relu(pair: Pair) -> None:
    """Hidden channels are in another order, which is right; the activation is another function."""
    correct.hidden_channels_permuted(pair)
    pair.at("model.layers.0.mlp").act_fn = nn.ReLU()


@suite.fault("parameter", at="model.layers.1.mlp.down_proj")
def channels_permuted_and_row_scaled(pair: Pair) -> None:
    """Hidden channels are in another order, which is right; a row of the weight that takes them is too large."""
    correct.hidden_channels_permuted(pair)
    _scale_row(pair, "model.layers.1.mlp.down_proj")


@suite.fault("parameter", at="model.layers.1.mlp.gate_proj")
def channels_permuted_and_gate_row_scaled(pair: Pair) -> None:
    """Hidden channels are in another order, which is right; a row of the gate's weight is too large."""
    correct.hidden_channels_permuted(pair)
    _scale_row(pair, "model.layers.1.mlp.gate_proj")


@suite.fault("parameter", at="model.layers.0.self_attn.o_proj")
def values_rotated_and_row_scaled(pair: Pair) -> None:
    """Each head's values are rotated, which is right; a row of the output projection is too large."""
    correct.values_rotated_per_head(pair)
    _scale_row(pair, "model.layers.0.self_attn.o_proj")


@suite.fault("parameter", at="model.layers.1.self_attn.q_proj")
def stream_rotated_and_query_row_scaled(pair: Pair) -> None:
    """The residual stream is rotated, which is right; a row of the queries' weight is too large."""
    correct.residual_stream_rotated(pair)
    _scale_row(pair, "model.layers.1.self_attn.q_proj")


@suite.fault("parameter", at="model.layers.1.mlp.down_proj")
def stream_rotated_and_row_scaled(pair: Pair) -> None:
    """The residual stream is rotated, which is right; a row of a weight that adds to it is too large."""
    correct.residual_stream_rotated(pair)
    _scale_row(pair, "model.layers.1.mlp.down_proj")


@suite.fault("container", at="model.layers.1")
def stream_rotated_and_residual_dropped(pair: Pair) -> None:
    """The residual stream is rotated, which is right; a layer leaves out its last residual."""
    correct.residual_stream_rotated(pair)
    rewrite(pair.at("model.layers.1"), _LAST_RESIDUAL, "hidden_states = self.mlp(hidden_states)")


@suite.fault("call", at="model", kind="miscalls", argument="attention_mask")
def stream_rotated_and_no_mask(pair: Pair) -> None:
    """The residual stream is rotated, which is right; the model hands its layers no mask."""
    correct.residual_stream_rotated(pair)
    _drop_mask(pair)
