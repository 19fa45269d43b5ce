"""Llama: wrong arguments. The answer is the caller, whose code hands the argument over."""

from __future__ import annotations

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("llama", models.llama, models.uncached)
_MASK = "attention_mask=causal_mask"


@suite.fault("argument", at="model", kind="miscalls", argument="attention_mask", inputs=models.padded_uncached)
def padding_mask_added_raw(pair: Pair) -> None:
    """The model hands its layers the int64 padding mask of ones and zeros, shaped to be added as it is."""
    rewrite(pair.at("model"), _MASK, "attention_mask=attention_mask[:, None, None, :]")


@suite.fault("argument", at="model", kind="miscalls", argument="attention_mask")
def causal_mask_missing(pair: Pair) -> None:
    """The model hands its layers None for the causal mask: every token sees the future."""
    rewrite(pair.at("model"), _MASK, "attention_mask=None")


@suite.fault("argument", at="model", kind="miscalls", argument="attention_mask")
def causal_mask_one_off(pair: Pair) -> None:
    """Every token sees one token of the future."""
    rewrite(
        pair.at("model"),
        _MASK,
        "attention_mask=torch.cat((causal_mask[:, :, 1:], causal_mask[:, :, -1:]), dim=2)",
    )


@suite.fault("argument", at="model", kind="miscalls", argument="attention_mask", inputs=models.padded_uncached)
def mask_of_row_zero(pair: Pair) -> None:
    """The mask of batch row 0 serves all rows: only the padded row 1 is wrong."""
    rewrite(pair.at("model"), _MASK, "attention_mask=causal_mask[:1].expand_as(causal_mask)")


@suite.fault("argument", at="model", kind="miscalls", argument="attention_mask", inputs=models.padded_uncached)
def padding_ignored(pair: Pair) -> None:
    """The causal mask is built without the padding mask: only what follows the padding is wrong."""
    rewrite(pair.at("model"), "            attention_mask=attention_mask,", "            attention_mask=None,")


@suite.fault("argument", at="", kind="miscalls", argument="attention_mask", inputs=models.padded_uncached)
def padding_mask_lost_by_the_root(pair: Pair) -> None:
    """The root model does not pass the padding mask on: the call that loses it is its own."""
    rewrite(pair.candidate, "attention_mask=attention_mask", "attention_mask=None")


@suite.fault("argument", at="model", kind="miscalls", argument="position_ids")
def positions_stretched(pair: Pair) -> None:
    """The model calls its rotary embedding with every other position: only position 0 keeps its place."""
    rewrite(
        pair.at("model"),
        "self.rotary_emb(hidden_states, position_ids=position_ids)",
        "self.rotary_emb(hidden_states, position_ids=position_ids * 2)",
    )


@suite.fault("argument", at="model", kind="miscalls", argument="position_ids")
def positions_reset(pair: Pair) -> None:
    """Positions start anew in the middle of the text, so the second half is rotated wrongly."""
    rewrite(
        pair.at("model"),
        "self.rotary_emb(hidden_states, position_ids=position_ids)",
        "self.rotary_emb(hidden_states, position_ids=position_ids % 12)",
    )


@suite.fault("argument", at="model.layers.1", kind="miscalls", argument="position_embeddings")
def cosine_and_sine_swapped(pair: Pair) -> None:
    """The second layer hands its attention (sin, cos) for (cos, sin)."""
    rewrite(
        pair.at("model.layers.1"),
        "position_embeddings=position_embeddings",
        "position_embeddings=position_embeddings[::-1]",
    )


@suite.fault("argument", at="model.layers.1", kind="miscalls", argument="hidden_states")
def attention_before_the_norm(pair: Pair) -> None:
    """The layer calls its norm and hands attention the states from before it."""
    rewrite(pair.at("model.layers.1"), "hidden_states=hidden_states", "hidden_states=residual")


@suite.fault("argument", at="", kind="miscalls", argument="input")
def head_one_token_late(pair: Pair) -> None:
    """The root hands its head states that are shifted by one token: the call of lm_head is its own."""
    rewrite(pair.candidate, "self.lm_head(hidden_states)", "self.lm_head(hidden_states.roll(1, dims=1))")


@suite.fault("argument", at="model", kind="miscalls", argument="hidden_states")
def last_norm_reads_embeddings_too(pair: Pair) -> None:
    """The model norms the sum of embeddings and states at the end: it hands its norm a wrong tensor."""
    rewrite(pair.at("model"), "self.norm(hidden_states)", "self.norm(hidden_states + inputs_embeds)")


@suite.fault("container", at="model", kind=["structure", "miscalls"])
def last_layer_skipped(pair: Pair) -> None:
    """The model runs one layer less than it has: layers.1 is never called, and that is the model's code."""
    rewrite(
        pair.at("model"),
        "self.layers[: self.config.num_hidden_layers]",
        "self.layers[: self.config.num_hidden_layers - 1]",
    )
