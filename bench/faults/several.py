"""Several independent faults in one candidate: all of them must be found, each once."""

from __future__ import annotations

from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.convnet import convnet, pixels

llama = Suite("llama", models.llama, models.padded_uncached)
bert = Suite("bert", models.bert, models.padded)
t5 = Suite("t5", models.t5, models.translation)
conv = Suite("conv", convnet, pixels)
mixtral = Suite("mixtral", models.mixtral, models.uncached)


@llama.several("model", "model.layers.0.mlp.down_proj")
def mask_and_weight(pair: Pair) -> None:
    """The model hands on no mask (its own call), and a row of a weight has the opposite sign."""
    pair.rewrite("attention_mask=causal_mask", "attention_mask=None", at="model")
    pair.at("model.layers.0.mlp.down_proj").weight[3].neg_()


@llama.several("model.rotary_emb", "model.layers.0.self_attn.o_proj", "lm_head")
def frequency_projection_and_head(pair: Pair) -> None:
    """The rotary frequencies are halved, a square weight is transposed, and the head's rows are one off."""
    pair.at("model.rotary_emb").inv_freq.div_(2)
    for path in ("model.layers.0.self_attn.o_proj", "lm_head"):
        weight = pair.at(path).weight
        weight.copy_(weight.t().clone() if path != "lm_head" else weight.roll(1, dims=0))


@bert.several("bert.encoder.layer.0.intermediate.intermediate_act_fn", "bert.encoder.layer.1.output.dense")
def small_and_large(pair: Pair) -> None:
    """A GELU by tanh, which is hardly seen, before a bias that is lost, which is."""
    pair.replace(nn.GELU(approximate="tanh"), at="bert.encoder.layer.0.intermediate.intermediate_act_fn")
    pair.at("bert.encoder.layer.1.output.dense").bias.zero_()


@t5.several("", "encoder.block.0.layer.0.SelfAttention", "decoder.block.1.layer.2.DenseReluDense.wo")
def mask_scale_and_weight(pair: Pair) -> None:
    """The root loses the encoder's mask, an attention of the encoder scales, and a decoder weight is scaled."""
    pair.rewrite("encoder_attention_mask=attention_mask", "encoder_attention_mask=None", at="")
    pair.at("encoder.block.0.layer.0.SelfAttention").scaling = 0.25
    pair.at("decoder.block.1.layer.2.DenseReluDense.wo").weight[:, :8].mul_(2)


@conv.several("blocks.0", "blocks.1.bn2", "head")
def shortcut_statistics_and_bias(pair: Pair) -> None:
    """A block without its shortcut, a batch norm without its statistics, and a head without its bias."""
    pair.rewrite("out = out + identity", "out = out", at="blocks.0")
    pair.at("blocks.1.bn2").reset_running_stats()
    pair.at("head").bias.zero_()


@mixtral.several("model.layers.0.mlp.gate", "model.layers.1.self_attn.v_proj")
def router_and_value(pair: Pair) -> None:
    """A router that does not normalise its weights, and a value projection with a row of zeros."""
    pair.rewrite("router_top_value /= router_top_value.sum(dim=-1, keepdim=True)", "pass", at="model.layers.0.mlp.gate")
    pair.at("model.layers.1.self_attn.v_proj").weight[9].zero_()


@llama.several(["model.layers.0.mlp.gate_proj"], ["model.layers.0.mlp.up_proj"], ["model.layers.0.mlp.down_proj"])
def all_of_one_block(pair: Pair) -> None:
    """Three neighbours within one MLP: each of its projections has a wrong row (or column)."""
    pair.at("model.layers.0.mlp.gate_proj").weight[1].neg_()
    pair.at("model.layers.0.mlp.up_proj").weight[2].neg_()
    pair.at("model.layers.0.mlp.down_proj").weight[3].neg_()
