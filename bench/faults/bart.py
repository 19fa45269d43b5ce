"""BART: an encoder-decoder with learned positions, biases and norms after the residual."""

from __future__ import annotations

from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("bart", models.bart, models.translation)


@suite.fault("leaf", at="model.encoder.embed_positions")
def position_offset_missing(pair: Pair) -> None:
    """The learned positions start at row 0 of their table and not at row 2: an attribute of that embedding."""
    pair.at("model.encoder.embed_positions").offset = 0


@suite.fault("leaf", at="model.decoder.layers.1.activation_fn")
def gelu_by_tanh(pair: Pair) -> None:
    """The decoder's last GELU is the tanh approximation."""
    pair.at("model.decoder.layers.1").activation_fn = nn.GELU(approximate="tanh")


@suite.fault("argument", at="model.decoder.layers.0", kind="miscalls", argument="attention_mask")
def cross_attention_without_mask(pair: Pair) -> None:
    """One decoder layer hands its cross-attention None for the mask over the source's padding."""
    rewrite(pair.at("model.decoder.layers.0"), "attention_mask=encoder_attention_mask", "attention_mask=None")


@suite.fault("argument", at="model.decoder.layers.1", kind=["miscalls", "structure"], argument="key_value_states")
def cross_attention_to_itself(pair: Pair) -> None:
    """One decoder layer attends to its own states (repeated to the source's length), not to the encoder's."""
    rewrite(
        pair.at("model.decoder.layers.1"),
        "key_value_states=encoder_hidden_states",
        "key_value_states=hidden_states.repeat(1, 3, 1)[:, : encoder_hidden_states.shape[1]]",
    )


@suite.fault("container", at="model.encoder.layers.1", kind=["miscalls", "introduces", "structure"])
def norm_before_attention(pair: Pair) -> None:
    """One encoder layer norms before attention, as other models do."""
    rewrite(
        pair.at("model.encoder.layers.1"),
        "        hidden_states = residual + hidden_states\n"
        "        hidden_states = self.self_attn_layer_norm(hidden_states)\n",
        "        hidden_states = residual + self.self_attn_layer_norm(hidden_states)\n",
    )


@suite.fault("buffer", at="")
def final_bias_lost(pair: Pair) -> None:
    """The reference adds a bias to its logits from a buffer of the root, which the candidate never loaded."""
    pair.reference.final_logits_bias.normal_()
