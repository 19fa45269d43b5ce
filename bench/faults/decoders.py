"""Decoders of other designs: Gemma 2, OPT and GPT-NeoX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import (
    BIAS,
    MISSING,
    ONE_ROW_MASK,
    PART,
    ROW_NEGATED,
    ROW_ZERO,
    SCALING,
    TWICE,
    WEIGHT,
    all_of,
)

gemma2 = Suite("gemma2", models.gemma2, models.uncached)


@gemma2.fault("container", at="", kind="introduces")
def final_softcap_missing(pair: Pair) -> None:
    """The root returns its logits uncapped, which keeps their order: the root's own code after its last call."""
    pair.rewrite("            logits = torch.tanh(logits)\n", "")


@gemma2.fault("container", at="model.layers.1.self_attn", reason=r"softcap")
def attention_softcap_missing(pair: Pair) -> None:
    """One attention does not cap its logits: an attribute of it says so."""
    pair.faulty.attn_logit_softcapping = None


@gemma2.fault("argument", at="model", argument="attention_mask")
def window_one_short(pair: Pair) -> None:
    """The model's mask for layers with a window sees one token less: exact up to the window's length."""
    pair.rewrite(
        "create_sliding_window_causal_mask(**mask_kwargs)",
        "create_sliding_window_causal_mask(\n"
        '                    **mask_kwargs | {"config": type(self.config)(\n'
        '                        sliding_window=5, attn_implementation="eager", num_hidden_layers=2)}\n'
        "                )",
    )


@gemma2.fault("argument", at="model", argument="attention_mask")
def window_absent(pair: Pair) -> None:
    """The model hands all layers the mask without a window."""
    pair.rewrite("create_sliding_window_causal_mask(**mask_kwargs)", "create_causal_mask(**mask_kwargs)")


@gemma2.fault("buffer", at="model.embed_tokens", reason=r"\bembed_scale\b")
def embedding_scale_ignored(pair: Pair) -> None:
    """The embedding's buffer with its scale is 1: it returns embeddings that are 8 times too small."""
    pair.faulty.embed_scale.fill_(1.0)


@gemma2.fault("leaf", at="model.layers.0.pre_feedforward_layernorm")
def norm_without_the_one(pair: Pair) -> None:
    """A norm multiplies by its weight where it should by 1 + weight: its own code."""
    pair.rewrite("(1.0 + self.weight.float())", "self.weight.float()")


@gemma2.fault("container", at="model.layers.1", kind=["miscalls", "introduces", "structure"])
def norm_after_the_residual(pair: Pair) -> None:
    """The layer norms the sum with the residual where it should norm the attention's output alone."""
    pair.rewrite(
        "        hidden_states = self.post_attention_layernorm(hidden_states)\n"
        "        hidden_states = residual + hidden_states\n",
        "        hidden_states = self.post_attention_layernorm(residual + hidden_states)\n",
    )


@gemma2.fault(
    "parameter", at="model.layers.1.post_feedforward_layernorm", reason=all_of(WEIGHT, r"\bpre_feedforward_layernorm\b")
)
def norm_weight_of_another(pair: Pair) -> None:
    """A norm was loaded with the weight of its neighbour."""
    layer = pair.at("model.layers.1")
    layer.post_feedforward_layernorm.weight.copy_(layer.pre_feedforward_layernorm.weight)


opt = Suite("opt", models.opt, models.left_padded)
# Candidates of other modules or another dtype, which single modules of the reference cannot be exchanged with.
rebuilt = Suite("rebuilt", models.opt, models.left_padded)
DECODER = "model.decoder"


@opt.fault("leaf", at="model.decoder.embed_positions", reason=r"\boffset\b")
def position_offset_one_short(pair: Pair) -> None:
    """The table of positions is read with an offset of 1 and not 2."""
    pair.faulty.offset = 1


@opt.fault("leaf", at="model.decoder.layers.1.activation_fn", reason=r"\bgelu\b")
def gelu_for_relu(pair: Pair) -> None:
    """The activation is a GELU."""
    pair.replace(nn.GELU())


@opt.fault(
    "container", at="model.decoder.layers.0", kind=["miscalls", "introduces", "structure"], reason=r"norm_before"
)
def norms_after_their_blocks(pair: Pair) -> None:
    """One layer norms after attention and after the MLP, as OPT-350m does: an attribute of the layer."""
    pair.faulty.do_layer_norm_before = False


@opt.fault("parameter", at="model.decoder.project_in", reason=ROW_NEGATED)
def row_of_the_projection_flipped(pair: Pair) -> None:
    """One row of the projection into the layers has the opposite sign."""
    pair.faulty.weight[3].neg_()


@rebuilt.fault(
    "container",
    at=DECODER,
    kind=["structure", "miscalls", "introduces"],
    reason=all_of(r"\bfinal_layer_norm\b", rf"{MISSING}|\b(not|never) call|no (module|counterpart)|without"),
)
def last_norm_left_out(pair: Pair) -> None:
    """The decoder has no final norm, as old checkpoints of OPT-350m: the module is missing."""
    pair.faulty.final_layer_norm = None


@opt.fault("argument", at=DECODER, argument="position_ids")
def padding_counted_in_positions(pair: Pair) -> None:
    """Positions count the padding on the left: only the padded row is wrong."""
    pair.rewrite(
        "torch.cumsum(position_attention_mask, dim=1)\n"
        "            position_ids = (position_ids * position_attention_mask - 1).long()",
        "torch.cumsum(torch.ones_like(position_attention_mask), dim=1)\n            position_ids = position_ids - 1",
    )


@opt.fault("argument", at=DECODER, argument="attention_mask", reason=MISSING)
def mask_for_the_first_layer_alone(pair: Pair) -> None:
    """The decoder hands its second layer None for the mask."""
    pair.rewrite("attention_mask=causal_mask", "attention_mask=causal_mask if idx == 0 else None")


@opt.fault("argument", at="model.decoder.layers.1", argument="attention_mask", reason=ONE_ROW_MASK)
def mask_of_row_zero_in_one_layer(pair: Pair) -> None:
    """One layer hands its attention the mask of batch row 0 for both rows."""
    pair.rewrite("attention_mask=attention_mask", "attention_mask=attention_mask[:1]")


@opt.fault("argument", at="", argument="attention_mask", reason=MISSING)
def padding_lost_by_the_root(pair: Pair) -> None:
    """The root hands its decoder None for the padding mask: positions and mask are wrong in the padded row."""
    pair.rewrite("attention_mask=attention_mask", "attention_mask=None", at="")


@opt.fault("container", at="model.decoder.layers.0.self_attn", reason=SCALING)
def queries_unscaled(pair: Pair) -> None:
    """One attention does not scale its queries."""
    pair.faulty.scaling = 1.0


@opt.fault("container", at="model.decoder.layers.1", kind="introduces")
def mlp_without_residual(pair: Pair) -> None:
    """One layer returns its MLP's output alone: its own last sum."""
    pair.rewrite("(residual + hidden_states).view", "hidden_states.view")


@opt.fault("parameter", at="model.decoder.layers.0.fc2", reason=all_of(BIAS, TWICE))
def bias_twice(pair: Pair) -> None:
    """A bias is twice as large, as when each of two shards adds it."""
    pair.faulty.bias.mul_(2)


@opt.fault(
    "parameter",
    at="model.decoder.layers.1.self_attn_layer_norm",
    reason=all_of(f"{WEIGHT}|{BIAS}", r"\blayers\.0\.self_attn_layer_norm\b"),
)
def norm_of_another_layer(pair: Pair) -> None:
    """One norm has the weights of the first layer's."""
    source = pair.at("model.decoder.layers.0.self_attn_layer_norm")
    pair.faulty.load_state_dict(source.state_dict())


@opt.fault("dtype", at="model.decoder.layers.0.fc2")
def half_overflows(pair: Pair) -> None:
    """One linear layer computes in half precision, and one of its rows is beyond 65504."""
    for linear in pair.both():
        linear.weight[9].mul_(3e6)
    pair.faulty.__class__ = HalfLinear


class HalfLinear(nn.Linear):
    """Computes in float16 and returns float32."""

    def forward(self, input: Tensor) -> Tensor:
        bias = self.bias.half() if self.bias is not None else None
        return nn.functional.linear(input.half(), self.weight.half(), bias).float()


class Positional(nn.Module):
    """Wraps a decoder layer and passes what it is given on by position; `masked=False` forgets the mask."""

    def __init__(self, layer: nn.Module, masked: bool = True) -> None:
        super().__init__()
        self.inner = layer
        self.masked = masked

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        mask = kwargs["attention_mask"] if self.masked else None
        return self.inner(
            hidden_states, mask, kwargs.get("past_key_values"), kwargs.get("use_cache"), kwargs.get("position_ids")
        )


@opt.correct()
def layers_called_by_position(pair: Pair) -> None:
    """Every layer is inside a wrapper that passes keywords on by position."""
    layers = pair.at(DECODER).layers
    pair.replace(nn.ModuleList(Positional(layer) for layer in layers), at=f"{DECODER}.layers")


@rebuilt.fault("argument", at="model.decoder.layers.1", kind="introduces", reason=MISSING)
def wrapper_forgets_the_mask(pair: Pair) -> None:
    """The same, and one wrapper forgets the mask: the reference's layer that it stands for is the answer."""
    layers = pair.at(DECODER).layers
    pair.replace(
        nn.ModuleList(Positional(layer, masked=i == 0) for i, layer in enumerate(layers)), at=f"{DECODER}.layers"
    )


@rebuilt.fault("parameter", at="model.decoder.layers.0.self_attn.out_proj", reason=ROW_ZERO)
def layers_called_by_position_one_row_zero(pair: Pair) -> None:
    """Every layer is inside such a wrapper, and one output projection has a row of zeros."""
    layers_called_by_position(pair)
    pair.at("model.decoder.layers.0.inner.self_attn.out_proj").weight[20].zero_()


@opt.correct()
def scale_folded_into_queries(pair: Pair) -> None:
    """The queries' scale is in their projection, and attention does not scale."""
    for layer in pair.at(DECODER).layers:
        layer.self_attn.q_proj.weight.mul_(layer.self_attn.scaling)
        layer.self_attn.q_proj.bias.mul_(layer.self_attn.scaling)
        layer.self_attn.scaling = 1.0


@opt.correct()
def value_bias_moved(pair: Pair) -> None:
    """The values' bias is in the output projection's: probabilities sum to one."""
    for layer in pair.at(DECODER).layers:
        attention = layer.self_attn
        attention.out_proj.bias.add_(attention.out_proj.weight @ attention.v_proj.bias)
        attention.v_proj.bias.zero_()


@opt.correct()
def narrow_embedding_widened(pair: Pair) -> None:
    """The projection into the layers is folded into the embedding, and an identity stands in its place."""
    decoder = pair.at(DECODER)
    weight = decoder.embed_tokens.weight.detach().double() @ decoder.project_in.weight.detach().double().t()
    decoder.embed_tokens = nn.Embedding(len(weight), weight.shape[1], padding_idx=1)
    decoder.embed_tokens.weight = nn.Parameter(weight.float())
    decoder.project_in = nn.Identity()


@opt.several("", "model.decoder.layers.0.self_attn.k_proj")
def mask_lost_and_key_row_flipped(pair: Pair) -> None:
    """The root loses the padding mask, and a row of a key projection has the opposite sign."""
    padding_lost_by_the_root(pair)
    pair.at("model.decoder.layers.0.self_attn.k_proj").weight[4].neg_()


gpt_neox = Suite("gpt_neox", models.gpt_neox, models.padded_uncached)
LAYERS = [f"gpt_neox.layers.{layer}" for layer in range(2)]


@gpt_neox.fault("container", at=LAYERS[0], reason=r"parallel")
def in_series(pair: Pair) -> None:
    """One layer runs its MLP after attention and not beside it: an attribute of the layer."""
    pair.faulty.use_parallel_residual = False


@gpt_neox.fault("container", at=f"{LAYERS[1]}.attention")
def fused_projection_by_kind(pair: Pair) -> None:
    """The fused projection is split into query, key and value first, and into heads second."""
    pair.rewrite(
        "        qkv = self.query_key_value(hidden_states).view(hidden_shape).transpose(1, 2)\n"
        "        query_states, key_states, value_states = qkv.chunk(3, dim=-1)\n",
        "        parts = self.query_key_value(hidden_states).chunk(3, dim=-1)\n"
        "        query_states, key_states, value_states = (\n"
        "            part.view(*input_shape, -1, self.head_size).transpose(1, 2) for part in parts\n"
        "        )\n",
    )


@gpt_neox.fault("container", at=f"{LAYERS[0]}.attention")
def the_other_half_rotated(pair: Pair) -> None:
    """One attention rotates the last half of each head's channels."""
    pair.rewrite(
        "    q_rot, q_pass = q[..., :rotary_dim], q[..., rotary_dim:]\n"
        "    k_rot, k_pass = k[..., :rotary_dim], k[..., rotary_dim:]\n",
        "    q_pass, q_rot = q[..., :rotary_dim], q[..., rotary_dim:]\n"
        "    k_pass, k_rot = k[..., :rotary_dim], k[..., rotary_dim:]\n",
        within="apply_rotary_pos_emb",
    )


@gpt_neox.several(*(f"{layer}.attention" for layer in LAYERS))
def interleaved_everywhere(pair: Pair) -> None:
    """Every attention rotates neighbouring channels where the halves belong together."""
    for layer in LAYERS:
        pair.rewrite(
            "    q_embed = (q_rot * cos) + (rotate_half(q_rot) * sin)\n"
            "    k_embed = (k_rot * cos) + (rotate_half(k_rot) * sin)\n",
            "    turn = lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)\n"
            "    q_embed = (q_rot * cos) + (turn(q_rot) * sin)\n"
            "    k_embed = (k_rot * cos) + (turn(k_rot) * sin)\n",
            within="apply_rotary_pos_emb",
            at=f"{layer}.attention",
        )


@gpt_neox.fault("container", at=f"{LAYERS[0]}.attention")
def softmax_in_bfloat16(pair: Pair) -> None:
    """One attention takes its softmax in bfloat16."""
    pair.rewrite("dtype=torch.float32", "dtype=torch.bfloat16", within="eager_attention_forward")


@gpt_neox.fault("argument", at=LAYERS[1], argument="attention_mask", reason=ONE_ROW_MASK)
def mask_of_row_zero(pair: Pair) -> None:
    """One layer hands its attention the mask of row 0 for both rows."""
    pair.rewrite("attention_mask=attention_mask", "attention_mask=attention_mask[:1]")


@gpt_neox.fault("argument", at=LAYERS[0], argument="hidden_states")
def mlp_reads_unnormed_states(pair: Pair) -> None:
    """One layer calls the MLP's norm and hands the MLP the states from before it."""
    pair.rewrite(
        "            mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))\n",
        "            self.post_attention_layernorm(hidden_states)\n            mlp_output = self.mlp(hidden_states)\n",
    )


@gpt_neox.fault("container", at=LAYERS[1], kind=["structure", "miscalls"])
def one_norm_for_both(pair: Pair) -> None:
    """One layer norms for its MLP with the norm of attention, as GPT-J does."""
    pair.rewrite("(self.post_attention_layernorm(hidden_states))", "(self.input_layernorm(hidden_states))")


@gpt_neox.fault("container", at=LAYERS[1], kind="introduces")
def residual_forgotten(pair: Pair) -> None:
    """The last layer adds attention and MLP and not the residual."""
    pair.rewrite("mlp_output + attn_output + hidden_states", "mlp_output + attn_output")


@gpt_neox.fault("mode", at="gpt_neox.emb_dropout")
def embeddings_dropped_out(pair: Pair) -> None:
    """The dropout of the embeddings is alive."""
    pair.faulty.p = 0.1
    pair.faulty.train()


@gpt_neox.fault("parameter", at=f"{LAYERS[1]}.attention.query_key_value", reason=ROW_ZERO)
def key_of_one_head_never_loaded(pair: Pair) -> None:
    """The rows of one head's keys in a fused projection are zero."""
    pair.faulty.weight[64:80].zero_()


@gpt_neox.fault("parameter", at=f"{LAYERS[0]}.mlp.dense_4h_to_h", reason=all_of(WEIGHT, PART))
def tiny_error_in_one_entry(pair: Pair) -> None:
    """A single entry of a weight is 0.01 too large: one channel is off by parts in ten thousand."""
    pair.faulty.weight[5, 7] += 0.01


@gpt_neox.several(*(f"{layer}.input_layernorm" for layer in LAYERS), "gpt_neox.final_layer_norm")
def eps_of_three_norms(pair: Pair) -> None:
    """Three of five norms have eps 1e-3 and not 1e-5."""
    for path in (*(f"{layer}.input_layernorm" for layer in LAYERS), "gpt_neox.final_layer_norm"):
        pair.at(path).eps = 1e-3


@gpt_neox.several("gpt_neox.rotary_emb", f"{LAYERS[0]}.mlp.act")
def rotation_and_activation(pair: Pair) -> None:
    """The rotary frequencies are halved, and one GELU is the tanh approximation."""
    pair.at("gpt_neox.rotary_emb").inv_freq.div_(2)
    pair.replace(nn.GELU(approximate="tanh"), at=f"{LAYERS[0]}.mlp.act")


class ByKind(nn.Module):
    """Three linear layers whose outputs are joined head by head, as the fused projection has them."""

    def __init__(self, fused: nn.Linear, heads: int) -> None:
        super().__init__()
        size = fused.in_features
        self.heads = heads
        weights = fused.weight.detach().view(heads, 3, -1, size)
        biases = fused.bias.detach().view(heads, 3, -1)
        self.parts = nn.ModuleList(nn.Linear(size, size) for _ in range(3))
        with torch.no_grad():
            for kind, part in enumerate(self.parts):
                part.weight.copy_(weights[:, kind].reshape(size, size))  # type: ignore[operator]
                part.bias.copy_(biases[:, kind].reshape(size))  # type: ignore[operator]

    def forward(self, input: Tensor) -> Tensor:
        parts = [part(input).unflatten(-1, (self.heads, -1)) for part in self.parts]
        return torch.stack(parts, dim=-2).flatten(-3)


@gpt_neox.correct()
def fused_projection_of_three(pair: Pair) -> None:
    """Each fused projection is three linear layers, joined in the same order."""
    for layer in LAYERS:
        attention = pair.at(f"{layer}.attention")
        attention.query_key_value = ByKind(attention.query_key_value, heads=4).eval()


@gpt_neox.correct()
def sums_in_another_order(pair: Pair) -> None:
    """Each layer adds attention to the residual in place, and the MLP after that."""
    for layer in LAYERS:
        pair.rewrite(
            "mlp_output + attn_output + hidden_states", "attn_output.add_(hidden_states).add_(mlp_output)", at=layer
        )


@gpt_neox.correct()
def norm_weights_folded(pair: Pair) -> None:
    """The norms' weights and biases are in the projections after them."""
    for layer in LAYERS:
        block = pair.at(layer)
        for norm, linear in (
            (block.input_layernorm, block.attention.query_key_value),
            (block.post_attention_layernorm, block.mlp.dense_h_to_4h),
        ):
            linear.bias.add_(linear.weight @ norm.bias)
            linear.weight.mul_(norm.weight)
            norm.reset_parameters()


@gpt_neox.correct()
def attention_in_torchs_kernel(pair: Pair) -> None:
    """The candidate uses scaled_dot_product_attention."""
    pair.candidate.set_attn_implementation("sdpa")


@gpt_neox.correct()
def other_mask_fill(pair: Pair) -> None:
    """What is masked gets -10000."""
    pair.rewrite("attention_mask=causal_mask", "attention_mask=causal_mask.clamp(min=-1e4)", at="gpt_neox")
