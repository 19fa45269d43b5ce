"""Faults that hide: in outputs beside the logits, behind a later fault, in a tensor written in place, among repeats."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import NON_FINITE, ROW_NEGATED

llama = Suite("hidden", models.llama, models.uncached)
padded = Suite("hidden", models.llama, models.padded_uncached)
deep = Suite("hidden", models.llama_deep, models.uncached)
gpt = Suite("hidden", models.gpt2, models.padded_uncached)
clip = Suite("hidden", models.clip_text, models.clip_tokens)
left = Suite("hidden", models.opt, models.left_padded)
moe = Suite("hidden", models.qwen2_moe, models.uncached)
DEEP = range(6)


def _cached() -> dict[str, Any]:
    return {**models.tokens(), "use_cache": True}


def _labelled() -> dict[str, Any]:
    inputs = models.uncached()
    return {**inputs, "labels": inputs["input_ids"].clone()}


@llama.fault("container", at="model.layers.0.self_attn", inputs=_cached)
def cache_holds_values_of_row_zero(pair: Pair) -> None:
    """One attention stores, and reads, the values of batch row 0 for all rows."""
    pair.rewrite("key_states, value_states, self", "key_states, value_states[:1].expand_as(value_states), self")


@llama.fault("container", at="", kind="introduces", inputs=_labelled)
def loss_without_shift(pair: Pair) -> None:
    """The root's loss is twice what it should be: its logits are right."""
    pair.rewrite("self.loss_function", "2 * self.loss_function")


@padded.fault("argument", at="model", kind=["miscalls", "non_finite"], inputs=models.left_padded, reason=NON_FINITE)
def mask_of_minus_infinity(pair: Pair) -> None:
    """The model fills its mask with minus infinity: a padded token that sees nobody becomes NaN."""
    pair.rewrite(
        "attention_mask=causal_mask", "attention_mask=causal_mask.masked_fill(causal_mask < -1, float('-inf'))"
    )


@padded.fault("argument", at="model", argument="attention_mask")
def mask_that_leaks(pair: Pair) -> None:
    """The model fills its mask with -6: masked tokens get a four-hundredth of their weight."""
    pair.rewrite("attention_mask=causal_mask", "attention_mask=causal_mask.clamp(min=-6)")


class InPlaceNorm(nn.LayerNorm):
    """Centres and scales its input where it stands, and returns another tensor."""

    def forward(self, input: Tensor) -> Tensor:
        input.sub_(input.mean(-1, keepdim=True)).div_((input.var(-1, keepdim=True, unbiased=False) + self.eps).sqrt())
        return input * self.weight + self.bias


@clip.fault(
    "leaf",
    at=["text_model.encoder.layers.1.layer_norm2", "text_model.encoder.layers.1"],
    reason=r"in[-_ ]?place|overwr|\bwr(ites|itten|ote)\b",
)
def norm_writes_into_the_residual(pair: Pair) -> None:
    """One norm returns the right tensor but has written into its input, which the layer adds afterwards."""
    pair.at("text_model.encoder.layers.1.layer_norm2").__class__ = InPlaceNorm


@gpt.several("transformer", "lm_head")
def position_and_head(pair: Pair) -> None:
    """The model looks up its positions one too far, and a row of the untied head is zero."""
    pair.rewrite("self.wpe(position_ids)", "self.wpe(position_ids + 1)", at="transformer")
    head = pair.at("lm_head")
    head.weight = nn.Parameter(head.weight.detach().clone())
    head.weight[5].zero_()


@llama.several("model.layers.0", "model.norm")
def norm_skipped_and_last_norm(pair: Pair) -> None:
    """One layer does not call its second norm, and the last norm has an eps of 1."""
    pair.rewrite("        hidden_states = self.post_attention_layernorm(hidden_states)\n", "", at="model.layers.0")
    pair.at("model.norm").variance_epsilon = 1.0


@llama.several("model.layers.0.self_attn", "model.layers.0")
def attention_and_the_layer_around_it(pair: Pair) -> None:
    """An attention scales wrongly, and the layer around it forgets its last residual."""
    pair.at("model.layers.0.self_attn").scaling = 0.125
    pair.rewrite("hidden_states = residual + hidden_states\n        return", "return", at="model.layers.0")


@llama.several("model.layers.1.input_layernorm", "model.layers.1.self_attn.q_proj", "model.layers.1")
def three_in_a_row(pair: Pair) -> None:
    """A norm's eps, a query row right behind it, and the layer's own sum after that."""
    pair.at("model.layers.1.input_layernorm").variance_epsilon = 1e-2
    pair.at("model.layers.1.self_attn.q_proj").weight[3].neg_()
    pair.rewrite("hidden_states = residual + hidden_states\n        return", "return", at="model.layers.1")


@left.fault(
    "container", at="model.decoder.layers.1", kind=["miscalls", "introduces", "structure"], reason=r"norm_before"
)
def norms_after_their_blocks_in_the_last_layer(pair: Pair) -> None:
    """The last layer norms after its blocks: several lines of one forward are wrong together."""
    pair.faulty.do_layer_norm_before = False


@gpt.fault("container", at="transformer.h.0")
def block_in_parallel(pair: Pair) -> None:
    """One block runs its MLP beside attention: another input for ln_2 and another sum."""
    pair.rewrite(
        "        residual = hidden_states\n        hidden_states = self.ln_2(hidden_states)\n",
        "        summed = hidden_states\n        hidden_states = self.ln_2(residual)\n        residual = summed\n",
    )


@gpt.fault("container", at="transformer.h.1", kind=["miscalls", "introduces", "structure"])
def block_normed_afterwards(pair: Pair) -> None:
    """One block calls its norms after its sums, as BERT does."""
    pair.rewrite("        hidden_states = self.ln_1(hidden_states)\n", "")


@deep.several(*(f"model.layers.{layer}.input_layernorm" for layer in DEEP))
def eps_of_six_norms(pair: Pair) -> None:
    """The first norm of all six layers has eps 1e-4 and not 1e-6."""
    for layer in DEEP:
        pair.at(f"model.layers.{layer}.input_layernorm").variance_epsilon = 1e-4


@deep.several(*(f"model.layers.{layer}.self_attn" for layer in DEEP), "model.layers.4.mlp.down_proj")
def six_rotations_and_a_row(pair: Pair) -> None:
    """All six attentions rotate the wrong way round, and a row of one MLP has the wrong sign."""
    for layer in DEEP:
        pair.rewrite(
            "    q_embed = (q * cos) + (rotate_half(q) * sin)\n    k_embed = (k * cos) + (rotate_half(k) * sin)\n",
            "    q_embed = (q * cos) - (rotate_half(q) * sin)\n    k_embed = (k * cos) + (rotate_half(k) * sin)\n",
            within="apply_rotary_pos_emb",
            at=f"model.layers.{layer}.self_attn",
        )
    pair.at("model.layers.4.mlp.down_proj").weight[7].neg_()


@deep.several(*(f"model.layers.{layer}.mlp.act_fn" for layer in DEEP))
def six_activations(pair: Pair) -> None:
    """All six MLPs run a GELU for their SiLU: every other leaf is right."""
    for layer in DEEP:
        pair.replace(nn.GELU(), at=f"model.layers.{layer}.mlp.act_fn")


@deep.several(
    *(f"model.layers.{layer}.{part}" for layer in DEEP for part in ("input_layernorm", "post_attention_layernorm"))
)
def eps_of_twelve_norms(pair: Pair) -> None:
    """All norms of all six layers have eps 1e-3: twelve of them, one mistake of the config."""
    for layer in DEEP:
        for part in ("input_layernorm", "post_attention_layernorm"):
            pair.at(f"model.layers.{layer}.{part}").variance_epsilon = 1e-3


@deep.fault("container", at="model", kind=["structure", "miscalls"])
def two_layers_exchanged(pair: Pair) -> None:
    """The model runs its third layer before its second."""
    pair.rewrite("self.layers[: self.config.num_hidden_layers]", "[self.layers[i] for i in (0, 2, 1, 3, 4, 5)]")


@deep.fault(
    "container",
    at="model",
    kind=["structure", "miscalls", "introduces"],
    reason=r"layers\.6\b|\bseven(th)?\b|\b7 (layers|modules)\b|\b(extra|additional|one more)\b",
)
def one_layer_more(pair: Pair) -> None:
    """The candidate has a seventh layer, a copy of the sixth, and the model runs it."""
    layers = pair.faulty.layers
    layers.append(type(layers[5])(pair.candidate.config, 6).eval())
    layers[6].load_state_dict(layers[5].state_dict())
    pair.rewrite("self.layers[: self.config.num_hidden_layers]", "self.layers")


@moe.fault("leaf", at="model.layers.0.mlp.experts", kind=["miscalls", "introduces"])
def expert_scaled_before_its_activation(pair: Pair) -> None:
    """The experts multiply their input by the routing weight, and not their output."""
    pair.rewrite(
        "            current_state = hidden_states[token_idx]\n",
        "            current_state = hidden_states[token_idx] * top_k_weights[token_idx, top_k_pos, None]\n"
        "            top_k_weights = torch.ones_like(top_k_weights)\n",
    )


@functools.cache
def _bfloat16_llama() -> Any:
    # A copy of its own: the model of all cases must stay in float32.
    return copy.deepcopy(models.llama()).to(torch.bfloat16)


coarse = Suite("hidden_bfloat16", _bfloat16_llama, models.padded_uncached)


@coarse.fault("parameter", at="model.layers.1.self_attn.v_proj", reason=ROW_NEGATED)
def one_row_flipped(pair: Pair) -> None:
    """Both models are in bfloat16, and a row of the values has the wrong sign."""
    pair.faulty.weight[4].neg_()


@coarse.fault("argument", at="model", argument="attention_mask")
def padding_lost(pair: Pair) -> None:
    """Both models are in bfloat16, and the model makes its mask without the padding."""
    pair.rewrite("            attention_mask=attention_mask,", "            attention_mask=None,")


@coarse.fault("leaf", at="model.layers.0.mlp.act_fn", reason=r"\bgelu\b")
def gelu_for_silu(pair: Pair) -> None:
    """Both models are in bfloat16, and one activation is a GELU."""
    pair.replace(nn.GELU())


@coarse.correct("clean", "drift")
def fused_attention(pair: Pair) -> None:
    """Both models are in bfloat16, and the candidate uses scaled_dot_product_attention."""
    pair.candidate.set_attn_implementation("sdpa")


@coarse.correct("clean", "drift")
def float32(pair: Pair) -> None:
    """The reference is in bfloat16 and the candidate in float32: it is the more exact one."""
    pair.candidate.float()
