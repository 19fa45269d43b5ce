"""DeBERTa v2: attention between contents and positions, in buckets, and a convolution after the first layer."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import deberta
from bench.faults.rewrite import rewrite

suite = Suite("deberta", deberta, models.padded)
ENCODER = "deberta.encoder"
ATTENTION = [f"deberta.encoder.layer.{layer}.attention.self" for layer in range(2)]


@suite.fault("parameter", at=["deberta.encoder.rel_embeddings", ENCODER])
def relative_embedding_flipped(pair: Pair) -> None:
    """A row of the relative embedding has the opposite sign. It is never called: the encoder reads its weight."""
    with torch.no_grad():
        pair.at("deberta.encoder.rel_embeddings").weight[7].neg_()


@suite.fault("container", at=ATTENTION[0], kind=["miscalls", "introduces"])
def scale_for_two_kinds(pair: Pair) -> None:
    """One attention scales as if there were no position-to-content part: its own code around its projections."""
    rewrite(
        pair.at(ATTENTION[0]),
        '        if "p2c" in self.pos_att_type:\n            scale_factor += 1\n',
        "",
    )


@suite.fault("container", at=ATTENTION[1], kind=["miscalls", "introduces"])
def positions_not_transposed_back(pair: Pair) -> None:
    """One attention adds its position-to-content scores untransposed, in a method that forward calls."""
    rewrite(
        pair.at(ATTENTION[1]),
        "            ).transpose(-1, -2)\n            score += p2c_att",
        "            )\n            score += p2c_att",
        within="disentangled_attention_bias",
    )


@suite.fault("argument", at=ENCODER, kind="miscalls", argument="relative_pos")
def distances_negated(pair: Pair) -> None:
    """The encoder hands its layers distances of the opposite sign, int64."""
    rewrite(pair.at(ENCODER), "relative_pos=relative_pos", "relative_pos=-relative_pos")


@suite.fault("argument", at=ENCODER, kind="miscalls", argument="relative_pos")
def far_distances_clamped(pair: Pair) -> None:
    """The encoder clamps distances at 3: only tokens far apart are wrong."""
    rewrite(pair.at(ENCODER), "relative_pos=relative_pos", "relative_pos=relative_pos.clamp(-3, 3)")


@suite.fault("container", at="deberta.encoder.conv")
def convolution_keeps_padding(pair: Pair) -> None:
    """The convolution's block does not zero the padded tokens of its output: only they differ there."""
    rewrite(pair.at("deberta.encoder.conv"), "output * input_mask", "output")


@suite.fault("container", at="deberta.embeddings", kind=["miscalls", "introduces"])
def embeddings_keep_padding(pair: Pair) -> None:
    """The embeddings of padded tokens are not zeroed: only padded tokens differ, until the convolution reads them."""
    rewrite(pair.at("deberta.embeddings"), "embeddings = embeddings * mask", "pass")


@suite.fault("argument", at=ENCODER, kind="miscalls", argument="residual_states")
def convolution_beside_the_wrong_states(pair: Pair) -> None:
    """The encoder hands its convolution's block the first layer's input twice."""
    rewrite(
        pair.at(ENCODER),
        "self.conv(hidden_states, output_states, input_mask)",
        "self.conv(hidden_states, hidden_states, input_mask)",
    )


@suite.fault("mode", at=f"{ATTENTION[1]}.dropout")
def attention_dropout_alive(pair: Pair) -> None:
    """The dropout of one attention's probabilities is in train mode."""
    pair.at(f"{ATTENTION[1]}.dropout").train()


@suite.fault("mode", at=["deberta.encoder.layer.0.output.dropout", "deberta.encoder.layer.0.output"])
def one_block_in_train_mode(pair: Pair) -> None:
    """One output block is in train mode, and its dropout with it."""
    pair.at("deberta.encoder.layer.0.output").train()


@suite.fault("buffer", at="deberta.embeddings", kind="raises")
def positions_too_short(pair: Pair) -> None:
    """The buffer of positions has 16 entries, so the sum of embeddings raises for 24 tokens."""
    embeddings = pair.at("deberta.embeddings")
    embeddings.position_ids = embeddings.position_ids[:, :16].clone()


@suite.fault("container", at="deberta.encoder.layer.1.attention", kind=["miscalls", "introduces"])
def residual_of_attention_is_its_own(pair: Pair) -> None:
    """One attention hands its output block its own output as the residual."""
    rewrite(
        pair.at("deberta.encoder.layer.1.attention"),
        "self.output(self_output, query_states)",
        "self.output(self_output, self_output)",
    )


@suite.fault("leaf", at="deberta.encoder.LayerNorm")
def eps_of_the_relative_norm(pair: Pair) -> None:
    """The norm of the relative embedding has eps 1e-3."""
    pair.at("deberta.encoder.LayerNorm").eps = 1e-3


@suite.several(f"{ATTENTION[0]}.pos_key_proj", f"{ATTENTION[0]}.value_proj", "deberta.encoder.layer.1.output.LayerNorm")
def three_parameters(pair: Pair) -> None:
    """A bias of the positions' keys is negated, a row of the values is flipped, and a norm lost its bias."""
    with torch.no_grad():
        pair.at(f"{ATTENTION[0]}.pos_key_proj").bias.neg_()
        pair.at(f"{ATTENTION[0]}.value_proj").weight[3].neg_()
        pair.at("deberta.encoder.layer.1.output.LayerNorm").bias.zero_()


@suite.several(*(f"deberta.encoder.layer.{layer}.intermediate.intermediate_act_fn" for layer in range(2)))
def tanh_gelu_everywhere(pair: Pair) -> None:
    """Both feed-forwards run the tanh approximation of GELU."""
    for layer in range(2):
        pair.at(f"deberta.encoder.layer.{layer}.intermediate").intermediate_act_fn = nn.GELU(approximate="tanh")


@suite.correct()
def loaded_from_its_own_state(pair: Pair) -> None:
    """The same model twice, loaded from its own state: parameters are copies."""
    pair.candidate.load_state_dict(pair.reference.state_dict())
