"""Gemma 2: softcaps, sliding windows, scaled embeddings, four norms a layer."""

from __future__ import annotations

import torch

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("gemma2", models.gemma2, models.uncached)


@suite.fault("container", at="")
def final_softcap_missing(pair: Pair) -> None:
    """The root returns its logits uncapped, which keeps their order: the root's own code after its last call."""
    rewrite(pair.candidate, "            logits = torch.tanh(logits)\n", "")


@suite.fault("container", at="model.layers.1.self_attn", kind=["miscalls", "introduces"])
def attention_softcap_missing(pair: Pair) -> None:
    """One attention does not cap its logits: an attribute of it says so."""
    pair.at("model.layers.1.self_attn").attn_logit_softcapping = None


@suite.fault("argument", at="model", kind="miscalls", argument="attention_mask")
def window_one_short(pair: Pair) -> None:
    """The model's mask for layers with a window sees one token less: exact up to the window's length."""
    rewrite(
        pair.at("model"),
        "create_sliding_window_causal_mask(**mask_kwargs)",
        "create_sliding_window_causal_mask(\n"
        '                    **mask_kwargs | {"config": type(self.config)(\n'
        '                        sliding_window=5, attn_implementation="eager", num_hidden_layers=2)}\n'
        "                )",
    )


@suite.fault("argument", at="model", kind="miscalls", argument="attention_mask")
def window_absent(pair: Pair) -> None:
    """The model hands all layers the mask without a window."""
    rewrite(pair.at("model"), "create_sliding_window_causal_mask(**mask_kwargs)", "create_causal_mask(**mask_kwargs)")


@suite.fault("buffer", at="model.embed_tokens")
def embedding_scale_ignored(pair: Pair) -> None:
    """The embedding's buffer with its scale is 1: it returns embeddings that are 8 times too small."""
    pair.at("model.embed_tokens").embed_scale.fill_(1.0)


@suite.fault("leaf", at="model.layers.0.pre_feedforward_layernorm")
def norm_without_the_one(pair: Pair) -> None:
    """A norm multiplies by its weight where it should by 1 + weight: its own code."""
    rewrite(pair.at("model.layers.0.pre_feedforward_layernorm"), "(1.0 + self.weight.float())", "self.weight.float()")


@suite.fault("container", at="model.layers.1", kind=["miscalls", "introduces", "structure"])
def norm_after_the_residual(pair: Pair) -> None:
    """The layer norms the sum with the residual where it should norm the attention's output alone."""
    rewrite(
        pair.at("model.layers.1"),
        "        hidden_states = self.post_attention_layernorm(hidden_states)\n"
        "        hidden_states = residual + hidden_states\n",
        "        hidden_states = self.post_attention_layernorm(residual + hidden_states)\n",
    )


@suite.fault("parameter", at="model.layers.1.post_feedforward_layernorm")
def norm_weight_of_another(pair: Pair) -> None:
    """A norm was loaded with the weight of its neighbour."""
    with torch.no_grad():
        layer = pair.at("model.layers.1")
        layer.post_feedforward_layernorm.weight.copy_(layer.pre_feedforward_layernorm.weight)
