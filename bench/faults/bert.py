"""BERT, DeBERTa v2 and ALBERT: padded batches, attention to positions in buckets, one layer that runs four times."""

from __future__ import annotations

from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import ANOTHER_SHAPE, BIAS_ZERO, EPS, EXACT_GELU, MISSING, ROW_NEGATED, TANH, WEIGHT, all_of

bert = Suite("bert", models.bert, models.padded)
_FIRST = "bert.encoder.layer.0"
_SECOND = "bert.encoder.layer.1"


@bert.fault("leaf", at=f"{_FIRST}.intermediate.intermediate_act_fn", reason=TANH)
def gelu_by_tanh(pair: Pair) -> None:
    """One GELU is the tanh approximation: about 5e-4 per activation. The activation is a module of its own."""
    pair.replace(nn.GELU(approximate="tanh"))


@bert.fault("leaf", at="bert.embeddings.LayerNorm", reason=EPS)
def layer_norm_eps(pair: Pair) -> None:
    """The first LayerNorm has the eps of torch's default (1e-5), not of the config (1e-12)."""
    pair.faulty.eps = 1e-5


@bert.fault("parameter", at=f"{_SECOND}.output.dense", reason=BIAS_ZERO)
def bias_zeroed(pair: Pair) -> None:
    """A linear layer lost its bias."""
    pair.faulty.bias.zero_()


@bert.fault(
    "parameter", at=f"{_SECOND}.attention.self.query", reason=all_of(WEIGHT, r"\blayer\.0\.attention\.self\.query\b")
)
def weight_of_another_layer(pair: Pair) -> None:
    """The second layer's query has the weights of the first layer's."""
    pair.faulty.load_state_dict(pair.at(f"{_FIRST}.attention.self.query").state_dict())


@bert.fault("buffer", at="bert.embeddings", kind=["miscalls", "introduces"], reason=r"\bposition_ids\b")
def position_table_one_off(pair: Pair) -> None:
    """The buffer with the positions counts from 1: it belongs to the embeddings, whose code hands it on."""
    pair.faulty.position_ids.add_(1)


@bert.fault("argument", at="bert.embeddings", argument="input")
def token_types_of_ones(pair: Pair) -> None:
    """The embeddings look up token type 1 where the default is 0."""
    pair.rewrite("(token_type_ids)", "(torch.ones_like(token_type_ids))")


@bert.fault("argument", at="bert", argument="attention_mask")
def padding_mask_added_raw(pair: Pair) -> None:
    """The model hands its encoder the mask of ones and zeros, from a helper method of its own."""
    pair.rewrite("return attention_mask", "return (attention_mask == 0).float()", within="_create_attention_masks")


@bert.fault("argument", at="bert.encoder", argument="attention_mask", reason=MISSING)
def mask_for_the_first_layer_only(pair: Pair) -> None:
    """The encoder hands its second layer None for the mask; only rows with padding show it."""
    pair.rewrite(
        "                attention_mask,\n                encoder_hidden_states,",
        "                attention_mask if i == 0 else None,\n                encoder_hidden_states,",
    )


@bert.fault("container", at=f"{_FIRST}.attention.output")
def residual_dropped(pair: Pair) -> None:
    """The output block of attention norms without the residual."""
    pair.rewrite("self.LayerNorm(hidden_states + input_tensor)", "self.LayerNorm(hidden_states)")


@bert.fault("argument", at=_SECOND, argument="input_tensor")
def residual_from_the_wrong_place(pair: Pair) -> None:
    """The layer hands its output block the first half of the wide states as residual, not the attention's output."""
    pair.rewrite(
        "self.output(intermediate_output, attention_output)",
        "self.output(intermediate_output, intermediate_output[..., : attention_output.shape[-1]])",
        within="feed_forward_chunk",
    )


@bert.fault("mode", at=f"{_FIRST}.output.dropout")
def dropout_alive(pair: Pair) -> None:
    """One dropout of the candidate is still in train mode."""
    pair.faulty.train()


@bert.fault(
    "raises",
    at="bert.embeddings.position_embeddings",
    kind=["raises", "introduces"],
    reason=rf"{ANOTHER_SHAPE}|\[16\b|\b16 (rows|entries|positions)|out of (range|bounds)",
)
def position_table_too_short(pair: Pair) -> None:
    """The table of positions was cut to 16 rows, so looking up the 17th raises in that embedding."""
    table = pair.faulty
    table.weight = nn.Parameter(table.weight.detach()[:16].clone())


deberta = Suite("deberta", models.deberta, models.padded)
ENCODER = "deberta.encoder"
ATTENTION = [f"deberta.encoder.layer.{layer}.attention.self" for layer in range(2)]


@deberta.fault("parameter", at=["deberta.encoder.rel_embeddings", ENCODER], reason=ROW_NEGATED)
def relative_embedding_flipped(pair: Pair) -> None:
    """A row of the relative embedding has the opposite sign. It is never called: the encoder reads its weight."""
    pair.at("deberta.encoder.rel_embeddings").weight[7].neg_()


@deberta.fault("container", at=ATTENTION[0])
def scale_for_two_kinds(pair: Pair) -> None:
    """One attention scales as if there were no position-to-content part: its own code around its projections."""
    pair.rewrite('        if "p2c" in self.pos_att_type:\n            scale_factor += 1\n', "")


@deberta.fault("container", at=ATTENTION[1])
def positions_not_transposed_back(pair: Pair) -> None:
    """One attention adds its position-to-content scores untransposed, in a method that forward calls."""
    pair.rewrite(
        "            ).transpose(-1, -2)\n            score += p2c_att",
        "            )\n            score += p2c_att",
        within="disentangled_attention_bias",
    )


@deberta.fault("argument", at=ENCODER, argument="relative_pos")
def distances_negated(pair: Pair) -> None:
    """The encoder hands its layers distances of the opposite sign, int64."""
    pair.rewrite("relative_pos=relative_pos", "relative_pos=-relative_pos")


@deberta.fault("argument", at=ENCODER, argument="relative_pos")
def far_distances_clamped(pair: Pair) -> None:
    """The encoder clamps distances at 3: only tokens far apart are wrong."""
    pair.rewrite("relative_pos=relative_pos", "relative_pos=relative_pos.clamp(-3, 3)")


@deberta.fault("container", at="deberta.encoder.conv", kind="introduces")
def convolution_keeps_padding(pair: Pair) -> None:
    """The convolution's block does not zero the padded tokens of its output: only they differ there."""
    pair.rewrite("output * input_mask", "output")


@deberta.fault("container", at="deberta.embeddings")
def embeddings_keep_padding(pair: Pair) -> None:
    """The embeddings of padded tokens are not zeroed: only padded tokens differ, until the convolution reads them."""
    pair.rewrite("embeddings = embeddings * mask", "pass")


@deberta.fault("argument", at=ENCODER, argument="residual_states")
def convolution_beside_the_wrong_states(pair: Pair) -> None:
    """The encoder hands its convolution's block the first layer's input twice."""
    pair.rewrite("(hidden_states, output_states, input_mask)", "(hidden_states, hidden_states, input_mask)")


@deberta.fault("mode", at=f"{ATTENTION[1]}.dropout")
def attention_dropout_alive(pair: Pair) -> None:
    """The dropout of one attention's probabilities is in train mode."""
    pair.faulty.train()


@deberta.fault("mode", at=["deberta.encoder.layer.0.output.dropout", "deberta.encoder.layer.0.output"])
def one_block_in_train_mode(pair: Pair) -> None:
    """One output block is in train mode, and its dropout with it."""
    pair.at("deberta.encoder.layer.0.output").train()


@deberta.fault(
    "buffer", at="deberta.embeddings", kind="raises", reason=all_of(r"\bposition_ids\b", rf"{ANOTHER_SHAPE}|\b16\b")
)
def positions_too_short(pair: Pair) -> None:
    """The buffer of positions has 16 entries, so the sum of embeddings raises for 24 tokens."""
    embeddings = pair.faulty
    embeddings.position_ids = embeddings.position_ids[:, :16].clone()


@deberta.fault("container", at="deberta.encoder.layer.1.attention")
def residual_of_attention_is_its_own(pair: Pair) -> None:
    """One attention hands its output block its own output as the residual."""
    pair.rewrite("self.output(self_output, query_states)", "self.output(self_output, self_output)")


@deberta.fault("leaf", at="deberta.encoder.LayerNorm", reason=EPS)
def eps_of_the_relative_norm(pair: Pair) -> None:
    """The norm of the relative embedding has eps 1e-3."""
    pair.faulty.eps = 1e-3


@deberta.several(
    f"{ATTENTION[0]}.pos_key_proj", f"{ATTENTION[0]}.value_proj", "deberta.encoder.layer.1.output.LayerNorm"
)
def three_parameters(pair: Pair) -> None:
    """A bias of the positions' keys is negated, a row of the values is flipped, and a norm lost its bias."""
    pair.at(f"{ATTENTION[0]}.pos_key_proj").bias.neg_()
    pair.at(f"{ATTENTION[0]}.value_proj").weight[3].neg_()
    pair.at("deberta.encoder.layer.1.output.LayerNorm").bias.zero_()


@deberta.several(*(f"deberta.encoder.layer.{layer}.intermediate.intermediate_act_fn" for layer in range(2)))
def tanh_gelu_everywhere(pair: Pair) -> None:
    """Both feed-forwards run the tanh approximation of GELU."""
    for layer in range(2):
        pair.replace(nn.GELU(approximate="tanh"), at=f"deberta.encoder.layer.{layer}.intermediate.intermediate_act_fn")


@deberta.correct()
def loaded_from_its_own_state(pair: Pair) -> None:
    """The same model twice, loaded from its own state: parameters are copies."""
    pair.candidate.load_state_dict(pair.reference.state_dict())


albert = Suite("albert", models.albert, models.padded)
SHARED = "albert.encoder.albert_layer_groups.0.albert_layers.0"


@albert.fault("leaf", at=f"{SHARED}.activation", reason=EXACT_GELU)
def other_gelu(pair: Pair) -> None:
    """The activation of the one layer that runs four times is the exact GELU."""
    pair.replace(nn.GELU())


@albert.fault("parameter", at=f"{SHARED}.ffn_output", reason=ROW_NEGATED)
def row_of_a_shared_layer(pair: Pair) -> None:
    """A row of a weight that is used four times has the wrong sign."""
    pair.faulty.weight[3].neg_()


@albert.fault("container", at="albert.encoder", kind=["structure", "miscalls"])
def one_pass_less(pair: Pair) -> None:
    """The encoder runs its shared layer three times and not four."""
    pair.rewrite("range(self.config.num_hidden_layers)", "range(self.config.num_hidden_layers - 1)")


@albert.fault("argument", at="albert.encoder", kind=["miscalls", "introduces"])
def states_scaled_between_passes(pair: Pair) -> None:
    """The encoder hands its shared layer, in its third pass alone, half of the states."""
    pair.rewrite(
        "        for i in range(self.config.num_hidden_layers):\n",
        "        for i in range(self.config.num_hidden_layers):\n"
        "            hidden_states = hidden_states * 0.5 if i == 2 else hidden_states\n",
    )
