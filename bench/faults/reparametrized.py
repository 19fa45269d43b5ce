"""Candidates that are re-parametrized rightly and carry one ordinary fault besides: that fault is the answer.

What the re-parametrization changes inside is undone inside, so naming it is as wrong as on the correct pairs, and
handing the candidate tensors in the reference's own terms breaks what was right.
"""

from __future__ import annotations

from torch import nn

from bench.faults import correct, decoders, gpt2, models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import BIAS_ZERO, EPS, MISSING, ORDER, ROW_NEGATED, ROW_SCALED, ROW_ZERO, SCALING, WEIGHT
from bench.faults.rewrite import rewrite

suite = Suite("reparametrized", models.llama, models.uncached)
LAYERS = range(2)
_LAST_RESIDUAL = "hidden_states = self.mlp(hidden_states)\n        hidden_states = residual + hidden_states"


def _drop_mask(pair: Pair) -> None:
    pair.rewrite("attention_mask=causal_mask", "attention_mask=None", at="model")


def _interleave(pair: Pair) -> None:
    """Rotary pairs are neighbours and not halves apart, in the rows of the weights as in attention's code."""
    for layer in LAYERS:
        attention = pair.at(f"model.layers.{layer}.self_attn")
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


@suite.fault("parameter", at="model.layers.1.self_attn.v_proj", reason=ROW_SCALED)
def rotary_interleaved_value_row_scaled(pair: Pair) -> None:
    """Queries and keys are interleaved, which is right; a row of the values' weight is 1.5 times too large."""
    _interleave(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.0.self_attn.k_proj", reason=WEIGHT)
def rotary_interleaved_key_row_scaled(pair: Pair) -> None:
    """Queries and keys are interleaved, which is right; a row of the keys' weight is 1.5 times too large."""
    _interleave(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.0.self_attn.k_proj", reason=WEIGHT)
def rotary_interleaved_key_row_flipped(pair: Pair) -> None:
    """Queries and keys are interleaved, which is right; a row of the keys' weight has the opposite sign.

    Reordered and with a sign flipped, the keys are still a rotation of the reference's: by their values alone they are
    as right as before.
    """
    _interleave(pair)
    pair.faulty.weight[17].neg_()


@suite.fault("leaf", at="model.layers.1.input_layernorm", reason=EPS)
def scale_folded_and_eps(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right; a norm has the default eps."""
    correct.scale_folded_into_keys(pair)
    pair.faulty.variance_epsilon = 1e-4


@suite.fault("parameter", at="model.layers.0.self_attn.q_proj", reason=ROW_SCALED)
def scale_folded_and_query_row_scaled(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right; a row of the queries' is 1.5 times too large."""
    correct.scale_folded_into_keys(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.0.self_attn.k_proj", reason=WEIGHT)
def scale_folded_and_key_row_scaled(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right, and one row of those is too large."""
    correct.scale_folded_into_keys(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("call", at="model", argument="attention_mask", reason=MISSING)
def scale_folded_and_no_mask(pair: Pair) -> None:
    """Attention's scale is in the keys' weights, which is right; the model hands its layers no mask."""
    correct.scale_folded_into_keys(pair)
    _drop_mask(pair)


@suite.fault("parameter", at="model.layers.1.mlp.down_proj", reason=ROW_SCALED)
def norms_smoothed_and_row_scaled(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; a row of an MLP's last weight is too large."""
    correct.norms_smoothed(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.0.self_attn.q_proj", reason=WEIGHT)
def norms_smoothed_and_query_row_scaled(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; a row of one of those is too large."""
    correct.norms_smoothed(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("leaf", at="model.layers.1.post_attention_layernorm", reason=EPS)
def norms_smoothed_and_eps(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; one of the norms has another eps as well."""
    correct.norms_smoothed(pair)
    pair.faulty.variance_epsilon = 1e-3


@suite.fault("container", at="model.layers.1", kind="introduces")
def norms_smoothed_and_residual_dropped(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; a layer leaves out its last residual."""
    correct.norms_smoothed(pair)
    pair.rewrite(_LAST_RESIDUAL, "hidden_states = self.mlp(hidden_states)")


@suite.fault("call", at="model", argument="attention_mask", reason=MISSING)
def norms_smoothed_and_no_mask(pair: Pair) -> None:
    """Norms and the layers after them are smoothed, which is right; the model hands its layers no mask."""
    correct.norms_smoothed(pair)
    _drop_mask(pair)


@suite.fault("leaf", at="model.layers.0.mlp.act_fn", reason=r"\brelu\b")
def channels_permuted_and_relu(pair: Pair) -> None:
    """Hidden channels are in another order, which is right; the activation is another function."""
    correct.hidden_channels_permuted(pair)
    pair.replace(nn.ReLU())


@suite.fault("parameter", at="model.layers.1.mlp.down_proj", reason=WEIGHT)
def channels_permuted_and_row_scaled(pair: Pair) -> None:
    """Hidden channels are in another order, which is right; a row of the weight that takes them is too large."""
    correct.hidden_channels_permuted(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.1.mlp.gate_proj", reason=WEIGHT)
def channels_permuted_and_gate_row_scaled(pair: Pair) -> None:
    """Hidden channels are in another order, which is right; a row of the gate's weight is too large."""
    correct.hidden_channels_permuted(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.0.self_attn.o_proj", reason=WEIGHT)
def values_rotated_and_row_scaled(pair: Pair) -> None:
    """Each head's values are rotated, which is right; a row of the output projection is too large."""
    correct.values_rotated_per_head(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.1.self_attn.q_proj", reason=WEIGHT)
def stream_rotated_and_query_row_scaled(pair: Pair) -> None:
    """The residual stream is rotated, which is right; a row of the queries' weight is too large."""
    correct.residual_stream_rotated(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("parameter", at="model.layers.1.mlp.down_proj", reason=WEIGHT)
def stream_rotated_and_row_scaled(pair: Pair) -> None:
    """The residual stream is rotated, which is right; a row of a weight that adds to it is too large."""
    correct.residual_stream_rotated(pair)
    pair.faulty.weight[17].mul_(1.5)


@suite.fault("container", at="model.layers.1", kind="introduces")
def stream_rotated_and_residual_dropped(pair: Pair) -> None:
    """The residual stream is rotated, which is right; a layer leaves out its last residual."""
    correct.residual_stream_rotated(pair)
    pair.rewrite(_LAST_RESIDUAL, "hidden_states = self.mlp(hidden_states)")


@suite.fault("call", at="model", argument="attention_mask", reason=MISSING)
def stream_rotated_and_no_mask(pair: Pair) -> None:
    """The residual stream is rotated, which is right; the model hands its layers no mask."""
    correct.residual_stream_rotated(pair)
    _drop_mask(pair)


llama = Suite("compensated", models.llama, models.padded_uncached)
gpt = Suite("compensated", models.gpt2, models.padded_uncached)
neox = Suite("compensated", models.gpt_neox, models.padded_uncached)
padded_opt = Suite("compensated", models.opt, models.left_padded)


@llama.fault("parameter", at="model.layers.1.self_attn.o_proj", reason=ROW_NEGATED)
def smoothed_and_a_row_flipped(pair: Pair) -> None:
    """Norms are smoothed as SmoothQuant does, and an output projection has a row of the wrong sign."""
    correct.norms_smoothed(pair)
    pair.faulty.weight[5].neg_()


@llama.fault("leaf", at="model.layers.0.mlp.act_fn", reason=r"\bgelu\b")
def smoothed_and_another_activation(pair: Pair) -> None:
    """Norms are smoothed, and one MLP's activation is a GELU: the folded norm before it is in another container."""
    correct.norms_smoothed(pair)
    pair.replace(nn.GELU())


@llama.fault("container", at="model.layers.0")
def smoothed_and_a_residual_lost(pair: Pair) -> None:
    """Norms are smoothed, and one layer forgets the residual after attention."""
    correct.norms_smoothed(pair)
    pair.rewrite(
        "        hidden_states = residual + hidden_states\n\n        # Fully Connected", "        # Fully Connected"
    )


@llama.fault("parameter", at="model.layers.1.mlp.down_proj", reason=ROW_ZERO)
def channels_permuted_and_a_row_zero(pair: Pair) -> None:
    """The hidden channels of the MLPs are permuted, and one projection has a row of zeros."""
    correct.hidden_channels_permuted(pair)
    pair.faulty.weight[8].zero_()


@llama.fault("container", at="model.layers.1.mlp")
def channels_permuted_and_halves_swapped(pair: Pair) -> None:
    """The hidden channels of the MLPs are permuted, and one MLP activates the other half."""
    correct.hidden_channels_permuted(pair)
    pair.rewrite("self.act_fn(self.gate_proj(x)) * self.up_proj(x)", "self.gate_proj(x) * self.act_fn(self.up_proj(x))")


@llama.fault(
    "parameter",
    at=["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"],
    reason=ORDER,
)
def one_of_three_not_permuted(pair: Pair) -> None:
    """The hidden channels are permuted, and one gate projection was forgotten: it, or the other two, are wrong."""
    correct.hidden_channels_permuted(pair)
    original = pair.reference.get_submodule("model.layers.0.mlp.gate_proj")
    pair.at("model.layers.0.mlp.gate_proj").load_state_dict(original.state_dict())


@llama.fault("parameter", at="model.layers.1.self_attn.q_proj", reason=ROW_NEGATED)
def key_scale_folded_and_a_query_row_flipped(pair: Pair) -> None:
    """The scale of attention is in the key weights, and a row of the queries has the wrong sign."""
    correct.scale_folded_into_keys(pair)
    pair.faulty.weight[3].neg_()


@llama.fault("parameter", at="model.layers.0.mlp.up_proj", reason=ROW_NEGATED)
def values_rotated_and_a_row_flipped(pair: Pair) -> None:
    """Values are rotated per head and rotated back, and a row of an MLP has the wrong sign."""
    correct.values_rotated_per_head(pair)
    pair.faulty.weight[9].neg_()


@llama.fault("container", at="model.layers.0.self_attn", reason=SCALING)
def values_rotated_and_another_scale(pair: Pair) -> None:
    """Values are rotated per head and rotated back, and one attention divides by the root of the hidden size."""
    correct.values_rotated_per_head(pair)
    pair.faulty.scaling = 64**-0.5


@llama.fault("leaf", at="model.layers.1.mlp.act_fn", reason=r"\bgelu\b")
def stream_rotated_and_another_activation(pair: Pair) -> None:
    """The residual stream is rotated, and one activation is a GELU: inside an MLP nothing is rotated."""
    correct.residual_stream_rotated(pair)
    pair.replace(nn.GELU())


@llama.fault("parameter", at="model.layers.0.self_attn.v_proj", reason=WEIGHT)
def stream_rotated_and_a_row_flipped(pair: Pair) -> None:
    """The residual stream is rotated, and a row of the values has the wrong sign."""
    correct.residual_stream_rotated(pair)
    pair.faulty.weight[2].neg_()


@llama.fault("argument", at="model", argument="attention_mask")
def stream_rotated_and_padding_lost(pair: Pair) -> None:
    """The residual stream is rotated, and the model makes its mask without the padding."""
    correct.residual_stream_rotated(pair)
    pair.rewrite("            attention_mask=attention_mask,", "            attention_mask=None,")


@gpt.fault("container", at="transformer.h.0")
def norms_folded_and_a_residual_lost(pair: Pair) -> None:
    """The norms are folded into the projections after them, and one block forgets its first residual."""
    gpt2.norms_folded(pair)
    pair.rewrite("hidden_states = attn_output + residual", "hidden_states = attn_output")


@gpt.fault("parameter", at="transformer.h.1.mlp.c_proj", reason=BIAS_ZERO)
def norms_folded_and_a_bias_lost(pair: Pair) -> None:
    """The norms are folded, and a bias behind an activation is zero."""
    gpt2.norms_folded(pair)
    pair.faulty.bias.zero_()


@neox.fault("container", at="gpt_neox.layers.1", kind="introduces")
def norms_folded_and_the_residual_forgotten(pair: Pair) -> None:
    """The norms are folded, and the last layer forgets its residual."""
    decoders.norm_weights_folded(pair)
    pair.rewrite("mlp_output + attn_output + hidden_states", "mlp_output + attn_output")


@padded_opt.fault("parameter", at="model.decoder.layers.1.self_attn.out_proj", reason=ROW_NEGATED)
def value_bias_moved_and_a_row_flipped(pair: Pair) -> None:
    """The values' bias is in the output projection's, and one of its rows has the wrong sign."""
    decoders.value_bias_moved(pair)
    pair.faulty.weight[6].neg_()


@padded_opt.fault("argument", at="model.decoder.layers.0", argument="attention_mask", reason=MISSING)
def scale_folded_and_the_mask_lost(pair: Pair) -> None:
    """The queries' scale is in their weights, and one layer hands its attention no mask."""
    decoders.scale_folded_into_queries(pair)
    pair.rewrite("attention_mask=attention_mask", "attention_mask=None")
