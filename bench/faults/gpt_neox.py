"""GPT-NeoX: attention and MLP side by side, half of each head rotated, fused projections by head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.more_text_models import gpt_neox
from bench.faults.rewrite import rewrite

suite = Suite("gpt_neox", gpt_neox, models.padded_uncached)
LAYERS = [f"gpt_neox.layers.{layer}" for layer in range(2)]


@suite.fault("container", at=LAYERS[0], kind=["miscalls", "introduces"])
def in_series(pair: Pair) -> None:
    """One layer runs its MLP after attention and not beside it: an attribute of the layer."""
    pair.at(LAYERS[0]).use_parallel_residual = False


@suite.fault("container", at=f"{LAYERS[1]}.attention", kind=["miscalls", "introduces"])
def fused_projection_by_kind(pair: Pair) -> None:
    """The fused projection is split into query, key and value first, and into heads second."""
    rewrite(
        pair.at(f"{LAYERS[1]}.attention"),
        "        qkv = self.query_key_value(hidden_states).view(hidden_shape).transpose(1, 2)\n"
        "        query_states, key_states, value_states = qkv.chunk(3, dim=-1)\n",
        "        parts = self.query_key_value(hidden_states).chunk(3, dim=-1)\n"
        "        query_states, key_states, value_states = (\n"
        "            part.view(*input_shape, -1, self.head_size).transpose(1, 2) for part in parts\n"
        "        )\n",
    )


@suite.fault("container", at=f"{LAYERS[0]}.attention", kind=["miscalls", "introduces"])
def the_other_half_rotated(pair: Pair) -> None:
    """One attention rotates the last half of each head's channels."""
    rewrite(
        pair.at(f"{LAYERS[0]}.attention"),
        "    q_rot, q_pass = q[..., :rotary_dim], q[..., rotary_dim:]\n"
        "    k_rot, k_pass = k[..., :rotary_dim], k[..., rotary_dim:]\n",
        "    q_pass, q_rot = q[..., :rotary_dim], q[..., rotary_dim:]\n"
        "    k_pass, k_rot = k[..., :rotary_dim], k[..., rotary_dim:]\n",
        within="apply_rotary_pos_emb",
    )


@suite.several(*(f"{layer}.attention" for layer in LAYERS))
def interleaved_everywhere(pair: Pair) -> None:
    """Every attention rotates neighbouring channels where the halves belong together."""
    for layer in LAYERS:
        rewrite(
            pair.at(f"{layer}.attention"),
            "    q_embed = (q_rot * cos) + (rotate_half(q_rot) * sin)\n"
            "    k_embed = (k_rot * cos) + (rotate_half(k_rot) * sin)\n",
            "    turn = lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)\n"
            "    q_embed = (q_rot * cos) + (turn(q_rot) * sin)\n"
            "    k_embed = (k_rot * cos) + (turn(k_rot) * sin)\n",
            within="apply_rotary_pos_emb",
        )


@suite.fault("container", at=f"{LAYERS[0]}.attention", kind=["miscalls", "introduces"])
def softmax_in_bfloat16(pair: Pair) -> None:
    """One attention takes its softmax in bfloat16."""
    rewrite(
        pair.at(f"{LAYERS[0]}.attention"),
        "dtype=torch.float32",
        "dtype=torch.bfloat16",
        within="eager_attention_forward",
    )


@suite.fault("argument", at=LAYERS[1], kind="miscalls", argument="attention_mask")
def mask_of_row_zero(pair: Pair) -> None:
    """One layer hands its attention the mask of row 0 for both rows."""
    rewrite(pair.at(LAYERS[1]), "attention_mask=attention_mask", "attention_mask=attention_mask[:1]")


@suite.fault("argument", at=LAYERS[0], kind="miscalls", argument="hidden_states")
def mlp_reads_unnormed_states(pair: Pair) -> None:
    """One layer calls the MLP's norm and hands the MLP the states from before it."""
    rewrite(
        pair.at(LAYERS[0]),
        "            mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))\n",
        "            self.post_attention_layernorm(hidden_states)\n            mlp_output = self.mlp(hidden_states)\n",
    )


@suite.fault("container", at=LAYERS[1], kind=["structure", "miscalls"])
def one_norm_for_both(pair: Pair) -> None:
    """One layer norms for its MLP with the norm of attention, as GPT-J does."""
    rewrite(
        pair.at(LAYERS[1]),
        "            mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))\n",
        "            mlp_output = self.mlp(self.input_layernorm(hidden_states))\n",
    )


@suite.fault("container", at=LAYERS[1])
def residual_forgotten(pair: Pair) -> None:
    """The last layer adds attention and MLP and not the residual."""
    rewrite(pair.at(LAYERS[1]), "mlp_output + attn_output + hidden_states", "mlp_output + attn_output")


@suite.fault("mode", at="gpt_neox.emb_dropout")
def embeddings_dropped_out(pair: Pair) -> None:
    """The dropout of the embeddings is alive."""
    pair.at("gpt_neox.emb_dropout").p = 0.1
    pair.at("gpt_neox.emb_dropout").train()


@suite.fault("parameter", at=f"{LAYERS[1]}.attention.query_key_value")
def key_of_one_head_never_loaded(pair: Pair) -> None:
    """The rows of one head's keys in a fused projection are zero."""
    with torch.no_grad():
        pair.at(f"{LAYERS[1]}.attention.query_key_value").weight[64:80].zero_()


@suite.fault("parameter", at=f"{LAYERS[0]}.mlp.dense_4h_to_h")
def tiny_error_in_one_entry(pair: Pair) -> None:
    """A single entry of a weight is 0.01 too large: one channel is off by parts in ten thousand."""
    with torch.no_grad():
        pair.at(f"{LAYERS[0]}.mlp.dense_4h_to_h").weight[5, 7] += 0.01


@suite.several(*(f"{layer}.input_layernorm" for layer in LAYERS), "gpt_neox.final_layer_norm")
def eps_of_three_norms(pair: Pair) -> None:
    """Three of five norms have eps 1e-3 and not 1e-5."""
    for path in (*(f"{layer}.input_layernorm" for layer in LAYERS), "gpt_neox.final_layer_norm"):
        pair.at(path).eps = 1e-3


@suite.several("gpt_neox.rotary_emb", f"{LAYERS[0]}.mlp.act")
def rotation_and_activation(pair: Pair) -> None:
    """The rotary frequencies are halved, and one GELU is the tanh approximation."""
    pair.at("gpt_neox.rotary_emb").inv_freq.div_(2)
    pair.at(f"{LAYERS[0]}.mlp").act = nn.GELU(approximate="tanh")


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


@suite.correct()
def fused_projection_of_three(pair: Pair) -> None:
    """Each fused projection is three linear layers, joined in the same order."""
    for layer in LAYERS:
        attention = pair.at(f"{layer}.attention")
        attention.query_key_value = ByKind(attention.query_key_value, heads=4).eval()


@suite.correct()
def sums_in_another_order(pair: Pair) -> None:
    """Each layer adds attention to the residual in place, and the MLP after that."""
    for layer in LAYERS:
        rewrite(
            pair.at(layer),
            "mlp_output + attn_output + hidden_states",
            "attn_output.add_(hidden_states).add_(mlp_output)",
        )


@suite.correct()
def norm_weights_folded(pair: Pair) -> None:
    """The norms' weights and biases are in the projections after them."""
    with torch.no_grad():
        for layer in LAYERS:
            block = pair.at(layer)
            for norm, linear in (
                (block.input_layernorm, block.attention.query_key_value),
                (block.post_attention_layernorm, block.mlp.dense_h_to_4h),
            ):
                linear.bias.add_(linear.weight @ norm.bias)
                linear.weight.mul_(norm.weight)
                norm.reset_parameters()


@suite.correct()
def attention_in_torchs_kernel(pair: Pair) -> None:
    """The candidate uses scaled_dot_product_attention."""
    pair.candidate.set_attn_implementation("sdpa")


@suite.correct()
def other_mask_fill(pair: Pair) -> None:
    """What is masked gets -10000."""
    rewrite(pair.at("gpt_neox"), "attention_mask=causal_mask", "attention_mask=causal_mask.clamp(min=-1e4)")
