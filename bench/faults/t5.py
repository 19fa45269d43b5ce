"""T5: an encoder-decoder with relative position biases and a gated feed-forward."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("t5", models.t5, models.translation)


@suite.fault("leaf", at="encoder.block.0.layer.1.DenseReluDense.act")
def gelu_by_erf(pair: Pair) -> None:
    """The gate uses the exact GELU where the model was trained with the tanh approximation."""
    pair.at("encoder.block.0.layer.1.DenseReluDense").act = nn.GELU()


@suite.fault("container", at="encoder.block.1.layer.0.SelfAttention", kind=["miscalls", "introduces"])
def logits_scaled(pair: Pair) -> None:
    """One attention divides its logits by the root of the head size, which T5 does not: an attribute of it."""
    pair.at("encoder.block.1.layer.0.SelfAttention").scaling = 0.25


@suite.fault("container", at="decoder.block.0.layer.0.SelfAttention", kind=["miscalls", "introduces"], argument="input")
def buckets_of_another_width(pair: Pair) -> None:
    """Attention sorts distances into buckets up to 128 and not 16, then looks up its bias by them."""
    pair.at("decoder.block.0.layer.0.SelfAttention").relative_attention_max_distance = 128


@suite.fault("argument", at="encoder", kind="miscalls", argument="position_bias")
def position_bias_not_shared(pair: Pair) -> None:
    """The encoder hands its second block None for the bias that the first block computed."""
    rewrite(pair.at("encoder"), "            position_bias = self_attention_position_bias\n", "")


@suite.fault("argument", at="", kind="miscalls", argument="encoder_attention_mask")
def encoder_mask_lost(pair: Pair) -> None:
    """The root does not tell its decoder which tokens of the source are padding."""
    rewrite(pair.candidate, "encoder_attention_mask=attention_mask", "encoder_attention_mask=None")


@suite.fault("argument", at="", kind="miscalls", argument="encoder_hidden_states")
def encoder_states_reversed(pair: Pair) -> None:
    """The root hands its decoder the encoder's states from last to first."""
    rewrite(pair.candidate, "encoder_hidden_states=hidden_states", "encoder_hidden_states=hidden_states.flip(1)")


@suite.fault("argument", at="decoder.block.1.layer.1", kind="miscalls", argument="hidden_states")
def cross_attention_without_norm(pair: Pair) -> None:
    """The cross-attention's layer calls its norm, and hands attention the states from before it."""
    rewrite(
        pair.at("decoder.block.1.layer.1"),
        "            normed_hidden_states,\n            mask=",
        "            hidden_states,\n            mask=",
    )


@suite.fault("container", at="encoder.block.1.layer.1.DenseReluDense", kind=["miscalls", "introduces"])
def gate_halves_swapped(pair: Pair) -> None:
    """The gated feed-forward activates the linear half."""
    block = "encoder.block.1.layer.1.DenseReluDense"
    rewrite(
        pair.at(block),
        "        hidden_gelu = self.act(self.wi_0(hidden_states))\n        hidden_linear = self.wi_1(hidden_states)\n",
        "        hidden_gelu = self.wi_0(hidden_states)\n        hidden_linear = self.act(self.wi_1(hidden_states))\n",
    )


@suite.fault("container", at="decoder.block.1.layer.2")
def residual_of_the_normed(pair: Pair) -> None:
    """The feed-forward's layer adds its output to itself, not to the residual: its last line."""
    rewrite(
        pair.at("decoder.block.1.layer.2"),
        "hidden_states + self.dropout(forwarded_states)",
        "forwarded_states + self.dropout(forwarded_states)",
    )


@suite.fault("tie", at="decoder.embed_tokens")
def embedding_untied_and_stale(pair: Pair) -> None:
    """The decoder's embedding shares no weight with the encoder's any more, and holds an older version."""
    embedding = pair.at("decoder.embed_tokens")
    noise = torch.randn(embedding.weight.shape, generator=torch.Generator().manual_seed(3))
    embedding.weight = nn.Parameter(embedding.weight.detach() + 0.1 * noise)


@suite.fault("parameter", at="decoder.block.0.layer.0.SelfAttention.relative_attention_bias")
def bias_table_of_the_encoder(pair: Pair) -> None:
    """The decoder's table of relative biases holds the encoder's."""
    source = pair.at("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
    pair.at("decoder.block.0.layer.0.SelfAttention.relative_attention_bias").load_state_dict(source.state_dict())
