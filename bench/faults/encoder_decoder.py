"""An ELECTRA encoder below a GPT-2 decoder with cross-attention: two architectures under one root."""

from __future__ import annotations

import torch

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import electra_to_gpt2
from bench.faults.rewrite import rewrite

suite = Suite("electra_to_gpt2", electra_to_gpt2, models.translation)


@suite.fault("argument", at="", kind="miscalls", argument="encoder_attention_mask")
def source_padding_forgotten(pair: Pair) -> None:
    """The root does not tell its decoder which tokens of the source are padding: None against a tensor."""
    rewrite(pair.candidate, "encoder_attention_mask=attention_mask", "encoder_attention_mask=None")


@suite.fault("argument", at="decoder.transformer", kind="miscalls", argument="encoder_attention_mask")
def source_padding_of_row_zero(pair: Pair) -> None:
    """The decoder's model hands its blocks the source's mask of row 0, which has no padding."""
    rewrite(
        pair.at("decoder.transformer"),
        "                encoder_attention_mask=encoder_attention_mask,\n                use_cache",
        "                encoder_attention_mask=encoder_attention_mask[:1],\n                use_cache",
    )


@suite.fault("argument", at="decoder.transformer.h.1", kind="miscalls", argument="encoder_attention_mask")
def one_block_forgets_the_source_padding(pair: Pair) -> None:
    """One block hands its cross-attention None for the source's mask."""
    rewrite(
        pair.at("decoder.transformer.h.1"),
        "encoder_attention_mask=encoder_attention_mask",
        "encoder_attention_mask=None",
    )


@suite.fault("container", at="decoder.transformer.h.0.crossattention", kind=["miscalls", "introduces"])
def keys_and_values_exchanged(pair: Pair) -> None:
    """One cross-attention splits its fused projection of the source as value, key."""
    rewrite(
        pair.at("decoder.transformer.h.0.crossattention"),
        "key_states, value_states = self.c_attn(encoder_hidden_states)",
        "value_states, key_states = self.c_attn(encoder_hidden_states)",
    )


@suite.fault("parameter", at="encoder.embeddings_project")
def projection_of_the_embeddings_stale(pair: Pair) -> None:
    """A column of the projection from the narrow embedding is zero."""
    with torch.no_grad():
        pair.at("encoder.embeddings_project").weight[:, 3].zero_()


@suite.fault("argument", at="encoder", kind="miscalls", argument="attention_mask")
def encoder_without_mask(pair: Pair) -> None:
    """The encoder's model hands its layers no mask."""
    rewrite(
        pair.at("encoder"),
        "            embedding_output,\n            attention_mask=attention_mask,\n            encoder_hidden",
        "            embedding_output,\n            attention_mask=None,\n            encoder_hidden",
    )


@suite.several("", "decoder.transformer.h.1.crossattention.q_attn")
def source_padding_and_query(pair: Pair) -> None:
    """The root forgets the source's padding, and a bias of a cross-attention's queries is zero."""
    source_padding_forgotten(pair)
    with torch.no_grad():
        pair.at("decoder.transformer.h.1.crossattention.q_attn").bias.zero_()


@suite.correct()
def keys_without_their_bias(pair: Pair) -> None:
    """No attention adds a bias to its keys, which softmax does not see."""
    with torch.no_grad():
        for module in pair.at("decoder").modules():
            if type(module).__name__ == "GPT2Attention":
                keys = slice(0, 64) if module.is_cross_attention else slice(64, 128)
                module.c_attn.bias[keys] = 0.0
