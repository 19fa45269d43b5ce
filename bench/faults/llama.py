"""Llama: faults in leaves, parameters and buffers, in the code of containers, and in the arguments that it hands on."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import (
    ANOTHER_SHAPE,
    EPS,
    EXCHANGED,
    HALVED,
    MISSING,
    ORDER,
    ROUNDED,
    ROW_NEGATED,
    ROW_SCALED,
    TRANSPOSED,
    TWICE,
    WEIGHT,
    all_of,
    times,
)

suite = Suite("llama", models.llama, models.uncached)


def long() -> dict[str, object]:
    """Return one row of 400 tokens."""
    return {**models.tokens(length=400, batch=1), "use_cache": False}


@suite.fault("leaf", at="model.layers.0.input_layernorm", reason=EPS)
def eps_default(pair: Pair) -> None:
    """The first norm has eps 1e-5 where the config says 1e-6: its own output is off by about 5e-4."""
    pair.faulty.variance_epsilon = 1e-5


@suite.fault("leaf", at="model.norm", reason=EPS)
def eps_of_a_large_input(pair: Pair) -> None:
    """The last norm has eps 1e-4: on its large input that is 100 roundings of float32, and no more."""
    pair.faulty.variance_epsilon = 1e-4


@suite.fault("leaf", at="model.layers.1.mlp.act_fn", reason=r"\brelu\b")
def relu_for_silu(pair: Pair) -> None:
    """The activation is another function. It is a module of its own, called by the MLP as before."""
    pair.replace(nn.ReLU())


@suite.fault("leaf", at="model.layers.0.post_attention_layernorm")
def norm_centred(pair: Pair) -> None:
    """One RMSNorm subtracts the mean as a LayerNorm would: changed code of a leaf."""
    pair.rewrite(
        "variance = hidden_states.pow(2)",
        "hidden_states = hidden_states - hidden_states.mean(-1, keepdim=True)\n        variance = hidden_states.pow(2)",
    )


@suite.fault("parameter", at="model.layers.1.mlp.down_proj", reason=ROW_NEGATED)
def row_sign_flipped(pair: Pair) -> None:
    """One row of a weight has the opposite sign: one output channel of that linear layer is wrong."""
    pair.faulty.weight[17].neg_()


@suite.fault("parameter", at="model.layers.0.self_attn.v_proj", reason=ROW_SCALED)
def row_scaled(pair: Pair) -> None:
    """One row of a weight is 1.5 times too large. Nothing undoes it."""
    pair.faulty.weight[5].mul_(1.5)


@suite.fault("parameter", at="model.layers.0.self_attn.o_proj", reason=all_of(WEIGHT, TRANSPOSED))
def square_weight_transposed(pair: Pair) -> None:
    """A square weight was loaded transposed."""
    linear = pair.faulty
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous())


@suite.fault("parameter", at="model.layers.1.mlp.gate_proj", reason=WEIGHT)
def weight_never_loaded(pair: Pair) -> None:
    """A weight kept random initial values of the right size."""
    weight = pair.faulty.weight
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)) * weight.std())


@suite.fault("parameter", at="model.embed_tokens", reason=all_of(WEIGHT, times("1.25")))
def embeddings_scaled(pair: Pair) -> None:
    """The embeddings are 1.25 times too large: a gain, and nothing downstream undoes it in the residual stream."""
    pair.faulty.weight.mul_(1.25)


@suite.fault(
    "parameter",
    at=["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"],
    model=models.llama_square,
    reason=all_of(WEIGHT, EXCHANGED),
)
def query_and_key_swapped(pair: Pair) -> None:
    """The weights of two square projections changed places: both are wrong, and either may be named first."""
    attention = pair.at("model.layers.1.self_attn")
    attention.q_proj.weight, attention.k_proj.weight = attention.k_proj.weight, attention.q_proj.weight


@suite.fault("parameter", at="lm_head", reason=all_of(WEIGHT, ORDER))
def vocabulary_shifted(pair: Pair) -> None:
    """The rows of the head are one token off."""
    pair.faulty.weight.copy_(pair.faulty.weight.roll(1, dims=0))


@suite.fault("tie", at="lm_head", model=models.llama_tied)
def head_untied_and_stale(pair: Pair) -> None:
    """The head should share the embedding's weight and holds an older version of it: the embedding is right."""
    head = pair.faulty
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    head.weight = nn.Parameter(head.weight.detach() + 0.02 * noise)


@suite.fault("buffer", at="model.rotary_emb", inputs=long, reason=all_of("inv_freq", ROUNDED))
def frequencies_in_bfloat16(pair: Pair) -> None:
    """The rotary frequencies went through bfloat16: exact at position 0, and worse the longer the text."""
    rotary = pair.faulty
    rotary.inv_freq = rotary.inv_freq.bfloat16().float()


@suite.fault("buffer", at="model.rotary_emb", inputs=long, reason=all_of("inv_freq", f"{TWICE}|{HALVED}"))
def frequency_scaling_ignored(pair: Pair) -> None:
    """The candidate's rotary embedding ignores a linear scaling of the positions by 2 that the reference has."""
    pair.reference.get_submodule("model.rotary_emb").inv_freq.div_(2)


@suite.fault("dtype", at="model.layers.1.mlp.down_proj")
def overflow_in_half(pair: Pair) -> None:
    """One linear layer computes in float16 and a large weight takes its sum beyond 65504, to infinity."""
    for linear in pair.both():
        linear.weight[3].mul_(3e5)
    pair.rewrite("(input, self.weight, self.bias)", "(input.half(), (self.weight / 8).half()).mul(8).to(input.dtype)")


_LAST_RESIDUAL = "hidden_states = self.mlp(hidden_states)\n        hidden_states = residual + hidden_states"


@suite.fault("container", at="model.layers.1", kind="introduces")
def residual_dropped(pair: Pair) -> None:
    """The layer returns the MLP's output without the residual: its last line, seen in its own output only."""
    pair.rewrite(_LAST_RESIDUAL, "hidden_states = self.mlp(hidden_states)")


@suite.fault("container", at="model.layers.0")
def residual_added_twice(pair: Pair) -> None:
    """The residual is added twice after attention, so the layer hands a wrong sum to its second norm."""
    old = "hidden_states = residual + hidden_states\n\n        # Fully Connected"
    pair.rewrite(old, old.replace("residual +", "residual + residual +"))


@suite.fault("container", at="model.layers.1", kind=["structure", "miscalls"])
def norm_skipped(pair: Pair) -> None:
    """The layer does not call its second norm and hands the MLP what should have been normed."""
    pair.rewrite("        hidden_states = self.post_attention_layernorm(hidden_states)\n", "")


@suite.fault("container", at="model.layers.0", kind=["structure", "miscalls"])
def norms_swapped(pair: Pair) -> None:
    """The layer calls its second norm in the place of the first: another module is called, by the layer's code."""
    pair.rewrite("self.input_layernorm(", "self.post_attention_layernorm(")


@suite.fault("container", at="model.layers.1")
def residual_after_the_norm(pair: Pair) -> None:
    """The layer keeps the normed states as the residual: a wrong order of two lines of its own."""
    pair.rewrite(
        "        residual = hidden_states\n        hidden_states = self.input_layernorm(hidden_states)",
        "        hidden_states = self.input_layernorm(hidden_states)\n        residual = hidden_states",
    )


@suite.fault("container", at="model.layers.0.mlp")
def gate_and_up_swapped(pair: Pair) -> None:
    """The MLP activates the other half: all three projections are right, and the MLP calls act_fn with `up`."""
    pair.rewrite("self.act_fn(self.gate_proj(x)) * self.up_proj(x)", "self.gate_proj(x) * self.act_fn(self.up_proj(x))")


@suite.fault("container", at="model.layers.1.self_attn")
def heads_left_untransposed(pair: Pair) -> None:
    """Heads and tokens are not transposed back before they are joined, in a function that attention calls."""
    pair.rewrite("attn_output.transpose(1, 2).contiguous", "attn_output.contiguous", within="eager_attention_forward")


@suite.fault("container", at="model.layers.0.self_attn")
def value_heads_tiled(pair: Pair) -> None:
    """The grouped value heads are repeated as 0 1 0 1 for 0 0 1 1, in a function that attention calls."""
    pair.rewrite(
        "value_states = repeat_kv(value, module.num_key_value_groups)",
        "value_states = value.repeat(1, module.num_key_value_groups, 1, 1)",
        within="eager_attention_forward",
    )


@suite.fault("container", at=["model.layers.0.self_attn", "model.layers.1.self_attn"])
def rotation_interleaved(pair: Pair) -> None:
    """Every attention rotates neighbouring channels where the halves belong together: token 0 stays exact.

    The same fault in both layers, so either may be named first.
    """
    for layer in (0, 1):
        pair.rewrite(
            "q_embed = (q * cos) + (rotate_half(q) * sin)",
            "q_embed = (q * cos) + (torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2) * sin)",
            within="apply_rotary_pos_emb",
            at=f"model.layers.{layer}.self_attn",
        )


@suite.fault("container", at="model.layers.1.self_attn")
def scale_of_the_wrong_size(pair: Pair) -> None:
    """The logits are divided by the root of the number of heads; the code of attention says so itself."""
    pair.rewrite("scaling=self.scaling", "scaling=self.config.num_attention_heads ** -0.5")


@suite.fault("container", at="model.layers.1.self_attn")
def key_rotation_missing(pair: Pair) -> None:
    """The keys are not rotated: a line of the function that attention calls."""
    pair.rewrite("k_embed = (k * cos) + (rotate_half(k) * sin)", "k_embed = k", within="apply_rotary_pos_emb")


_MASK = "attention_mask=causal_mask"


@suite.fault(
    "argument",
    at="model",
    argument="attention_mask",
    inputs=models.padded_uncached,
    reason=rf"\bint64\b|\bdtypes?\b|{ANOTHER_SHAPE}|\b2, ?1, ?1, ?24\b",
)
def padding_mask_added_raw(pair: Pair) -> None:
    """The model hands its layers the int64 padding mask of ones and zeros, shaped to be added as it is."""
    pair.rewrite(_MASK, "attention_mask=attention_mask[:, None, None, :]")


@suite.fault("argument", at="model", argument="attention_mask", reason=MISSING)
def causal_mask_missing(pair: Pair) -> None:
    """The model hands its layers None for the causal mask: every token sees the future."""
    pair.rewrite(_MASK, "attention_mask=None")


@suite.fault("argument", at="model", argument="attention_mask")
def causal_mask_one_off(pair: Pair) -> None:
    """Every token sees one token of the future."""
    pair.rewrite(_MASK, "attention_mask=torch.cat((causal_mask[:, :, 1:], causal_mask[:, :, -1:]), dim=2)")


@suite.fault("argument", at="model", argument="attention_mask", inputs=models.padded_uncached)
def mask_of_row_zero(pair: Pair) -> None:
    """The mask of batch row 0 serves all rows: only the padded row 1 is wrong."""
    pair.rewrite(_MASK, "attention_mask=causal_mask[:1].expand_as(causal_mask)")


@suite.fault("argument", at="model", argument="attention_mask", inputs=models.padded_uncached)
def padding_ignored(pair: Pair) -> None:
    """The causal mask is built without the padding mask: only what follows the padding is wrong."""
    pair.rewrite("            attention_mask=attention_mask,", "            attention_mask=None,")


@suite.fault("argument", at="", argument="attention_mask", inputs=models.padded_uncached, reason=MISSING)
def padding_mask_lost_by_the_root(pair: Pair) -> None:
    """The root model does not pass the padding mask on: the call that loses it is its own."""
    pair.rewrite("attention_mask=attention_mask", "attention_mask=None")


@suite.fault("argument", at="model", argument="position_ids")
def positions_stretched(pair: Pair) -> None:
    """The model calls its rotary embedding with every other position: only position 0 keeps its place."""
    pair.rewrite("(hidden_states, position_ids=position_ids)", "(hidden_states, position_ids=position_ids * 2)")


@suite.fault("argument", at="model", argument="position_ids")
def positions_reset(pair: Pair) -> None:
    """Positions start anew in the middle of the text, so the second half is rotated wrongly."""
    pair.rewrite("(hidden_states, position_ids=position_ids)", "(hidden_states, position_ids=position_ids % 12)")


@suite.fault("argument", at="model.layers.1", argument="position_embeddings")
def cosine_and_sine_swapped(pair: Pair) -> None:
    """The second layer hands its attention (sin, cos) for (cos, sin)."""
    pair.rewrite("position_embeddings=position_embeddings", "position_embeddings=position_embeddings[::-1]")


@suite.fault("argument", at="model.layers.1", argument="hidden_states")
def attention_before_the_norm(pair: Pair) -> None:
    """The layer calls its norm and hands attention the states from before it."""
    pair.rewrite("hidden_states=hidden_states", "hidden_states=residual")


@suite.fault("argument", at="", argument="input")
def head_one_token_late(pair: Pair) -> None:
    """The root hands its head states that are shifted by one token: the call of lm_head is its own."""
    pair.rewrite("self.lm_head(hidden_states)", "self.lm_head(hidden_states.roll(1, dims=1))")


@suite.fault("argument", at="model", argument="hidden_states")
def last_norm_reads_embeddings_too(pair: Pair) -> None:
    """The model norms the sum of embeddings and states at the end: it hands its norm a wrong tensor."""
    pair.rewrite("self.norm(hidden_states)", "self.norm(hidden_states + inputs_embeds)")


@suite.fault("container", at="model", kind=["structure", "miscalls"])
def last_layer_skipped(pair: Pair) -> None:
    """The model runs one layer less than it has: layers.1 is never called, and that is the model's code."""
    pair.rewrite("self.layers[: self.config.num_hidden_layers]", "self.layers[: self.config.num_hidden_layers - 1]")
