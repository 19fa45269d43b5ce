"""Llama: faults in leaves, parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

suite = Suite("llama", models.llama, models.uncached)


def long() -> dict[str, object]:
    """Return one row of 400 tokens."""
    return {**models.tokens(length=400, batch=1), "use_cache": False}


@suite.fault("leaf", at="model.layers.0.input_layernorm")
def eps_default(pair: Pair) -> None:
    """The first norm has eps 1e-5 where the config says 1e-6: its own output is off by about 5e-4."""
    pair.at("model.layers.0.input_layernorm").variance_epsilon = 1e-5


@suite.fault("leaf", at="model.norm")
def eps_of_a_large_input(pair: Pair) -> None:
    """The last norm has eps 1e-4: on its large input that is 100 roundings of float32, and no more."""
    pair.at("model.norm").variance_epsilon = 1e-4


@suite.fault("leaf", at="model.layers.1.mlp.act_fn")
def relu_for_silu(pair: Pair) -> None:
    """The activation is another function. It is a module of its own, called by the MLP as before."""
    pair.at("model.layers.1.mlp").act_fn = nn.ReLU()


@suite.fault("leaf", at="model.layers.0.post_attention_layernorm")
def norm_centred(pair: Pair) -> None:
    """One RMSNorm subtracts the mean as a LayerNorm would: changed code of a leaf."""
    rewrite(
        pair.at("model.layers.0.post_attention_layernorm"),
        "variance = hidden_states.pow(2)",
        "hidden_states = hidden_states - hidden_states.mean(-1, keepdim=True)\n        variance = hidden_states.pow(2)",
    )


@suite.fault("parameter", at="model.layers.1.mlp.down_proj")
def row_sign_flipped(pair: Pair) -> None:
    """One row of a weight has the opposite sign: one output channel of that linear layer is wrong."""
    with torch.no_grad():
        pair.at("model.layers.1.mlp.down_proj").weight[17].neg_()


@suite.fault("parameter", at="model.layers.0.self_attn.v_proj")
def row_scaled(pair: Pair) -> None:
    """One row of a weight is 1.5 times too large. Nothing undoes it."""
    with torch.no_grad():
        pair.at("model.layers.0.self_attn.v_proj").weight[5].mul_(1.5)


@suite.fault("parameter", at="model.layers.0.self_attn.o_proj")
def square_weight_transposed(pair: Pair) -> None:
    """A square weight was loaded transposed."""
    linear = pair.at("model.layers.0.self_attn.o_proj")
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous())


@suite.fault("parameter", at="model.layers.1.mlp.gate_proj")
def weight_never_loaded(pair: Pair) -> None:
    """A weight kept random initial values of the right size."""
    with torch.no_grad():
        weight = pair.at("model.layers.1.mlp.gate_proj").weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)) * weight.std())


@suite.fault("parameter", at="model.embed_tokens")
def embeddings_scaled(pair: Pair) -> None:
    """The embeddings are 1.25 times too large: a gain, and nothing downstream undoes it in the residual stream."""
    with torch.no_grad():
        pair.at("model.embed_tokens").weight.mul_(1.25)


@suite.fault(
    "parameter", at=["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"], model=models.llama_square
)
def query_and_key_swapped(pair: Pair) -> None:
    """The weights of two square projections changed places: both are wrong, and either may be named first."""
    attention = pair.at("model.layers.1.self_attn")
    attention.q_proj.weight, attention.k_proj.weight = attention.k_proj.weight, attention.q_proj.weight


@suite.fault("parameter", at="lm_head")
def vocabulary_shifted(pair: Pair) -> None:
    """The rows of the head are one token off."""
    with torch.no_grad():
        pair.at("lm_head").weight.copy_(pair.at("lm_head").weight.roll(1, dims=0))


@suite.fault("tie", at="lm_head", model=models.llama_tied)
def head_untied_and_stale(pair: Pair) -> None:
    """The head should share the embedding's weight and holds an older version of it: the embedding is right."""
    head = pair.at("lm_head")
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    head.weight = nn.Parameter(head.weight.detach() + 0.02 * noise)


@suite.fault("buffer", at="model.rotary_emb", inputs=long)
def frequencies_in_bfloat16(pair: Pair) -> None:
    """The rotary frequencies went through bfloat16: exact at position 0, and worse the longer the text."""
    rotary = pair.at("model.rotary_emb")
    rotary.inv_freq = rotary.inv_freq.bfloat16().float()


@suite.fault("buffer", at="model.rotary_emb", inputs=long)
def frequency_scaling_ignored(pair: Pair) -> None:
    """The candidate's rotary embedding ignores a linear scaling of the positions by 2 that the reference has."""
    pair.reference.get_submodule("model.rotary_emb").inv_freq.div_(2)


@suite.fault("dtype", at="model.layers.1.mlp.down_proj", kind="non_finite")
def overflow_in_half(pair: Pair) -> None:
    """One linear layer computes in float16 and a large weight takes its sum beyond 65504, to infinity."""
    for model in (pair.reference, pair.candidate):
        with torch.no_grad():
            model.get_submodule("model.layers.1.mlp.down_proj").weight[3].mul_(3e5)
    rewrite(
        pair.at("model.layers.1.mlp.down_proj"),
        "F.linear(input, self.weight, self.bias)",
        "F.linear(input.half(), (self.weight / 8).half()).mul(8).to(input.dtype)",
    )
