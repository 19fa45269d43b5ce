"""BERT: an encoder with biases, LayerNorms after the residual, learned positions and padded batches."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("bert", models.bert, models.padded)
_FIRST = "bert.encoder.layer.0"
_SECOND = "bert.encoder.layer.1"


@suite.fault("leaf", at=f"{_FIRST}.intermediate.intermediate_act_fn")
def gelu_by_tanh(pair: Pair) -> None:
    """One GELU is the tanh approximation: about 5e-4 per activation. The activation is a module of its own."""
    pair.at(f"{_FIRST}.intermediate").intermediate_act_fn = nn.GELU(approximate="tanh")


@suite.fault("leaf", at="bert.embeddings.LayerNorm")
def layer_norm_eps(pair: Pair) -> None:
    """The first LayerNorm has the eps of torch's default (1e-5), not of the config (1e-12)."""
    pair.at("bert.embeddings.LayerNorm").eps = 1e-5


@suite.fault("parameter", at=f"{_SECOND}.output.dense")
def bias_zeroed(pair: Pair) -> None:
    """A linear layer lost its bias."""
    with torch.no_grad():
        pair.at(f"{_SECOND}.output.dense").bias.zero_()


@suite.fault("parameter", at=f"{_SECOND}.attention.self.query")
def weight_of_another_layer(pair: Pair) -> None:
    """The second layer's query has the weights of the first layer's."""
    pair.at(f"{_SECOND}.attention.self.query").load_state_dict(pair.at(f"{_FIRST}.attention.self.query").state_dict())


@suite.fault("buffer", at="bert.embeddings", kind=["miscalls", "introduces"])
def position_table_one_off(pair: Pair) -> None:
    """The buffer with the positions counts from 1: it belongs to the embeddings, whose code hands it on."""
    pair.at("bert.embeddings").position_ids.add_(1)


@suite.fault("argument", at="bert.embeddings", kind="miscalls", argument="input")
def token_types_of_ones(pair: Pair) -> None:
    """The embeddings look up token type 1 where the default is 0."""
    rewrite(
        pair.at("bert.embeddings"),
        "self.token_type_embeddings(token_type_ids)",
        "self.token_type_embeddings(torch.ones_like(token_type_ids))",
    )


@suite.fault("argument", at="bert", kind="miscalls", argument="attention_mask")
def padding_mask_added_raw(pair: Pair) -> None:
    """The model hands its encoder the mask of ones and zeros, from a helper method of its own."""
    rewrite(
        pair.at("bert"),
        "        return attention_mask, encoder_attention_mask",
        "        return (attention_mask == 0).float(), encoder_attention_mask",
        within="_create_attention_masks",
    )


@suite.fault("argument", at="bert.encoder", kind="miscalls", argument="attention_mask")
def mask_for_the_first_layer_only(pair: Pair) -> None:
    """The encoder hands its second layer None for the mask; only rows with padding show it."""
    rewrite(
        pair.at("bert.encoder"),
        "                attention_mask,\n                encoder_hidden_states,",
        "                attention_mask if i == 0 else None,\n                encoder_hidden_states,",
    )


@suite.fault("container", at=f"{_FIRST}.attention.output", kind=["miscalls", "introduces"])
def residual_dropped(pair: Pair) -> None:
    """The output block of attention norms without the residual."""
    rewrite(
        pair.at(f"{_FIRST}.attention.output"),
        "self.LayerNorm(hidden_states + input_tensor)",
        "self.LayerNorm(hidden_states)",
    )


@suite.fault("argument", at=_SECOND, kind="miscalls", argument="input_tensor")
def residual_from_the_wrong_place(pair: Pair) -> None:
    """The layer hands its output block the first half of the wide states as residual, not the attention's output."""
    rewrite(
        pair.at(_SECOND),
        "self.output(intermediate_output, attention_output)",
        "self.output(intermediate_output, intermediate_output[..., : attention_output.shape[-1]])",
        within="feed_forward_chunk",
    )


@suite.fault("mode", at=f"{_FIRST}.output.dropout")
def dropout_alive(pair: Pair) -> None:
    """One dropout of the candidate is still in train mode."""
    pair.at(f"{_FIRST}.output.dropout").train()


@suite.fault("raises", at="bert.embeddings.position_embeddings", kind=["raises", "introduces"])
def position_table_too_short(pair: Pair) -> None:
    """The table of positions was cut to 16 rows, so looking up the 17th raises in that embedding."""
    table = pair.at("bert.embeddings.position_embeddings")
    table.weight = nn.Parameter(table.weight.detach()[:16].clone())
