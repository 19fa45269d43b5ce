"""Gemma 3: four norms a layer, norms of queries and keys, two rotary bases, scaled embeddings, a final softcap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import EPS, ROW_NEGATED, SCALING

suite = Suite("gemma3", models.gemma3, models.padded_uncached)
# Candidates of other modules or another dtype, which single modules of the reference cannot be exchanged with.
rebuilt = Suite("rebuilt", models.gemma3, models.padded_uncached)


@suite.fault("leaf", at="model.embed_tokens", reason=r"\bembed_scale\b")
def embeddings_unscaled(pair: Pair) -> None:
    """The embeddings are not multiplied by the root of the hidden size: a buffer of theirs."""
    pair.at("model.embed_tokens").embed_scale.fill_(1.0)


@suite.fault("leaf", at="model.layers.0.pre_feedforward_layernorm")
def norm_without_one(pair: Pair) -> None:
    """One norm multiplies by its weight and not by 1 + its weight."""
    pair.rewrite("(1.0 + self.weight.float())", "self.weight.float()")


@suite.fault("leaf", at="model.layers.1.self_attn.q_norm", reason=EPS)
def eps_of_the_query_norm(pair: Pair) -> None:
    """The norm of the queries has eps 1e-4 and not 1e-6."""
    pair.faulty.eps = 1e-4


@suite.fault("container", at="model.layers.1.self_attn", kind=["structure", "miscalls", "introduces"])
def key_norm_skipped(pair: Pair) -> None:
    """One attention does not norm its keys."""
    pair.rewrite("        key_states = self.k_norm(key_states)\n", "", at="model.layers.1.self_attn")


@suite.fault("container", at="model.layers.0.self_attn")
def query_norm_over_tokens(pair: Pair) -> None:
    """One attention norms its queries before heads are split off: over all heads' channels of a token together."""
    pair.rewrite("(query_states)", "(query_states.transpose(2, 3).reshape(query_states.shape)).contiguous()")


@suite.fault("container", at="model.layers.0.self_attn", kind=["structure", "miscalls", "introduces"])
def query_norm_for_keys(pair: Pair) -> None:
    """One attention norms its keys with the norm of the queries."""
    pair.rewrite("self.k_norm(key_states)", "self.q_norm(key_states)")


@suite.fault("container", at="model.layers.0", kind=["structure", "miscalls", "introduces"])
def last_norm_skipped(pair: Pair) -> None:
    """One layer adds the MLP's output without its norm."""
    pair.rewrite("        hidden_states = self.post_feedforward_layernorm(hidden_states)\n", "")


@suite.fault("container", at="model.layers.1")
def residual_before_the_norm(pair: Pair) -> None:
    """One layer adds the residual first and norms the sum after attention."""
    pair.rewrite(
        "        hidden_states = self.post_attention_layernorm(hidden_states)\n"
        "        hidden_states = residual + hidden_states\n",
        "        hidden_states = self.post_attention_layernorm(residual + hidden_states)\n",
    )


@suite.fault("argument", at="model", argument="position_embeddings")
def one_rotary_base_for_all(pair: Pair) -> None:
    """The model hands all layers the rotary embeddings of full attention."""
    pair.rewrite("position_embeddings[self.config.layer_types[i]]", 'position_embeddings["full_attention"]')


@suite.fault("argument", at="model", argument="attention_mask", reason=r"\bsliding_window\b|\bwindow\b")
def window_one_short(pair: Pair) -> None:
    """The window of the first layer holds one token less."""
    pair.candidate.config.sliding_window = 5


@suite.fault("container", at="", kind="introduces")
def softcap_missing(pair: Pair) -> None:
    """The root does not cap its logits."""
    pair.rewrite("if self.config.final_logit_softcapping is not None:", "if False:", at="")


@suite.fault("container", at="", kind="introduces", reason=r"softcap")
def softcap_of_another_size(pair: Pair) -> None:
    """The root caps its logits at 3.3 and not at 3."""
    pair.candidate.config.final_logit_softcapping = 3.3


@suite.fault("container", at="model.layers.0.self_attn", reason=SCALING)
def scale_of_another_size(pair: Pair) -> None:
    """One attention divides by the root of the hidden size."""
    pair.faulty.scaling = 64**-0.5


@suite.several("model.layers.0.mlp.act_fn", "model.layers.1.mlp.act_fn")
def gelu_by_erf_everywhere(pair: Pair) -> None:
    """Both MLPs run the exact GELU."""
    for layer in range(2):
        pair.replace(nn.GELU(), at=f"model.layers.{layer}.mlp.act_fn")


@suite.several("model.embed_tokens", "model.layers.1.self_attn")
def embeddings_unscaled_and_key_norm_skipped(pair: Pair) -> None:
    """The embeddings are not scaled, and one attention does not norm its keys."""
    embeddings_unscaled(pair)
    key_norm_skipped(pair)


@suite.several("model", "")
def window_and_softcap(pair: Pair) -> None:
    """The model's window is one short, and the root, around it, does not cap its logits."""
    window_one_short(pair)
    softcap_missing(pair)


@suite.correct()
def embedding_scale_folded(pair: Pair) -> None:
    """The scale of the embeddings is in their weight."""
    embeddings = pair.at("model.embed_tokens")
    embeddings.weight.mul_(embeddings.embed_scale)
    embeddings.embed_scale.fill_(1.0)


class RMSNorm(nn.Module):
    """An RMS norm that multiplies by its weight alone."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + norm.weight.detach())
        self.eps = norm.eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.square().mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.eps))


@suite.correct()
def one_in_the_norm_weights(pair: Pair) -> None:
    """All norms are of another class, with 1 + the weight as their weight."""
    for path, module in list(pair.candidate.named_modules()):
        if type(module).__name__ == "Gemma3RMSNorm":
            pair.replace(RMSNorm(module), at=path)


@suite.fault("parameter", at="model.layers.1.pre_feedforward_layernorm")
def one_in_all_norm_weights_but_one(pair: Pair) -> None:
    """The same, but one of them was loaded without the 1."""
    one_in_the_norm_weights(pair)
    pair.faulty.weight.sub_(1.0)


@suite.correct("clean", "drift")
def cast_to_bfloat16(pair: Pair) -> None:
    """The whole candidate is in bfloat16."""
    pair.candidate.to(torch.bfloat16)


@rebuilt.fault("parameter", at="model.layers.0.self_attn.v_proj", reason=ROW_NEGATED)
def cast_to_bfloat16_one_row_flipped(pair: Pair) -> None:
    """The candidate is in bfloat16, and one row of a weight has the opposite sign."""
    pair.candidate.to(torch.bfloat16)
    pair.faulty.weight[5].neg_()


@rebuilt.fault("container", at="model.layers.1.self_attn", reason=SCALING)
def cast_to_bfloat16_wrong_scale(pair: Pair) -> None:
    """The candidate is in bfloat16, and one attention scales by half of what it should."""
    pair.candidate.to(torch.bfloat16)
    pair.faulty.scaling = 0.125
