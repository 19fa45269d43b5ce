"""GPT-2: learned positions, fused projections stored as [in, out], and a head that is tied to the embedding."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import gpt2, typed
from bench.faults.rewrite import rewrite

suite = Suite("gpt2", gpt2, models.padded_uncached)
NORMS = [*(f"transformer.h.{layer}.ln_{norm}" for layer in range(2) for norm in (1, 2)), "transformer.ln_f"]


@suite.fault("leaf", at="transformer.h.0.mlp.act")
def gelu_by_erf(pair: Pair) -> None:
    """The exact GELU runs where the model has the tanh approximation."""
    pair.at("transformer.h.0.mlp").act = nn.GELU()


@suite.several(*NORMS)
def eps_of_all_norms(pair: Pair) -> None:
    """Every LayerNorm has eps 1e-3 and not 1e-5: one mistake of a converter, seen in each of them."""
    for path in NORMS:
        pair.at(path).eps = 1e-3


@suite.fault("parameter", at="transformer.h.1.attn.c_proj")
def square_weight_transposed(pair: Pair) -> None:
    """The square output projection is stored [out, in], as a linear layer would have it."""
    with torch.no_grad():
        weight = pair.at("transformer.h.1.attn.c_proj").weight
        weight.copy_(weight.t().clone())


@suite.fault("parameter", at="transformer.h.0.attn.c_attn")
def value_bias_lost(pair: Pair) -> None:
    """The last third of a fused bias was never loaded."""
    with torch.no_grad():
        pair.at("transformer.h.0.attn.c_attn").bias[128:].zero_()


@suite.several("transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc")
def weights_of_two_layers_exchanged(pair: Pair) -> None:
    """The same weight of two layers changed places: both are wrong."""
    first, second = (pair.at(f"transformer.h.{layer}.mlp").c_fc for layer in range(2))
    with torch.no_grad():
        first.weight.data, second.weight.data = second.weight.data, first.weight.data


@suite.fault("tie", at="lm_head")
def head_untied_and_random(pair: Pair) -> None:
    """The head does not share the embedding's weight and was never loaded."""
    head = pair.at("lm_head")
    generator = torch.Generator().manual_seed(8)
    head.weight = nn.Parameter(0.125 * torch.randn(head.weight.shape, generator=generator))


@suite.fault("container", at="transformer.h.1.attn", kind=["miscalls", "introduces"])
def key_before_query(pair: Pair) -> None:
    """The fused projection is split as key, query, value."""
    rewrite(
        pair.at("transformer.h.1.attn"),
        "query_states, key_states, value_states = self.c_attn(hidden_states)",
        "key_states, query_states, value_states = self.c_attn(hidden_states)",
    )


@suite.fault("container", at="transformer.h.0.attn", kind=["miscalls", "introduces"])
def softmax_over_queries(pair: Pair) -> None:
    """The probabilities of attention sum to one over the queries and not over the keys."""
    rewrite(pair.at("transformer.h.0.attn"), "dim=-1", "dim=-2", within="eager_attention_forward")


@suite.fault("container", at="transformer.h.1.attn", kind=["miscalls", "introduces"])
def head_channels_before_heads(pair: Pair) -> None:
    """Heads are joined channel by channel."""
    rewrite(
        pair.at("transformer.h.1.attn"),
        "attn_output.reshape(*attn_output.shape[:-2], -1)",
        "attn_output.transpose(-1, -2).reshape(*attn_output.shape[:-2], -1)",
    )


@suite.fault("container", at="transformer.h.0", kind=["miscalls", "introduces"])
def residual_of_attention_lost(pair: Pair) -> None:
    """The block hands on attention's output without the residual: a wrong input for ln_2, and a wrong sum."""
    rewrite(
        pair.at("transformer.h.0"),
        "        # residual connection\n        hidden_states = attn_output + residual\n",
        "        hidden_states = attn_output\n",
    )


@suite.fault("container", at="transformer.h.1", kind=["structure", "miscalls"])
def first_norm_twice(pair: Pair) -> None:
    """The block calls ln_1 where ln_2 belongs: another module in the place of one."""
    rewrite(pair.at("transformer.h.1"), "self.ln_2(hidden_states)", "self.ln_1(hidden_states)")


@suite.fault("container", at="transformer", kind=["structure", "miscalls"])
def first_block_twice(pair: Pair) -> None:
    """The model calls its first block twice."""
    rewrite(
        pair.at("transformer"),
        "for i, block in enumerate(self.h):",
        "for i, block in enumerate([self.h[0], *self.h]):",
    )


@suite.fault("argument", at="transformer", kind="miscalls", argument="input")
def positions_count_from_one(pair: Pair) -> None:
    """The model looks up its positions one too far."""
    rewrite(pair.at("transformer"), "self.wpe(position_ids)", "self.wpe(position_ids + 1)")


@suite.fault("argument", at="transformer", kind="miscalls", argument="attention_mask")
def padding_lost_by_the_model(pair: Pair) -> None:
    """The model makes its mask without the padding: only tokens of row 1 that see it are wrong."""
    rewrite(
        pair.at("transformer"), "            attention_mask=attention_mask,\n", "            attention_mask=None,\n"
    )


@suite.fault("argument", at="", kind="miscalls", argument="token_type_ids", inputs=typed)
def token_types_lost(pair: Pair) -> None:
    """The root hands its model None for the token types."""
    rewrite(pair.candidate, "token_type_ids=token_type_ids", "token_type_ids=None")


@suite.fault("container", at="transformer", kind=["miscalls", "introduces"], inputs=typed)
def token_types_subtracted(pair: Pair) -> None:
    """The model subtracts the embeddings of the token types: between its embeddings and its dropout."""
    rewrite(pair.at("transformer"), "hidden_states + token_type_embeds", "hidden_states - token_type_embeds")


@suite.fault("mode", at="transformer.h.1.mlp.dropout")
def dropout_alive(pair: Pair) -> None:
    """One dropout is in train mode."""
    pair.at("transformer.h.1.mlp.dropout").train()


@suite.several("transformer.h.0.attn", "transformer.h.1.attn")
def scale_missing_everywhere(pair: Pair) -> None:
    """No attention divides its logits by the root of the head size."""
    for layer in range(2):
        pair.at(f"transformer.h.{layer}.attn").scaling = 1.0


@suite.several("transformer", "transformer.h.1.mlp.c_proj", "lm_head")
def positions_projection_and_head(pair: Pair) -> None:
    """The positions are one off, one projection's bias is lost, and three rows of the untied head are zero."""
    rewrite(pair.at("transformer"), "self.wpe(position_ids)", "self.wpe(position_ids + 1)")
    head = pair.at("lm_head")
    head.weight = nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        pair.at("transformer.h.1.mlp.c_proj").bias.zero_()
        head.weight[5:8].zero_()
