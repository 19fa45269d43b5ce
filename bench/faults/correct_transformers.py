"""Correct transformers whose insides differ: what is changed in one place is undone in another."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.rewrite import rewrite

llama = Suite("llama", models.llama, models.uncached)
mixtral = Suite("mixtral", models.mixtral, models.uncached)
bert = Suite("bert", models.bert, models.padded)
t5 = Suite("t5", models.t5, models.translation)
vit = Suite("vit", models.vit, models.image)
LAYERS = range(2)


@llama.correct()
def identical(pair: Pair) -> None:
    """The same model twice."""


@llama.correct()
def scale_folded_into_keys(pair: Pair) -> None:
    """1 / sqrt(head size) is in the key weights and no longer in attention's code."""
    for layer in LAYERS:
        attention = pair.at(f"model.layers.{layer}.self_attn")
        with torch.no_grad():
            attention.k_proj.weight.mul_(attention.scaling)
        attention.scaling = 1.0


@llama.correct()
def norms_smoothed(pair: Pair) -> None:
    """As SmoothQuant does: norm weights are divided by factors per channel, the linear layers after them multiplied."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in LAYERS:
            block = pair.at(f"model.layers.{layer}")
            attention, mlp = block.self_attn, block.mlp
            for norm, linears in (
                (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                factors = torch.rand(norm.weight.shape, generator=generator) * 4 + 0.25
                norm.weight.div_(factors)
                for linear in linears:
                    linear.weight.mul_(factors)


def _orthogonal(size: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation: torch.Tensor = torch.linalg.qr(matrix)[0]
    return rotation


def _per_head(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Return a block-diagonal matrix with `matrix` for each head."""
    return torch.kron(torch.eye(heads, dtype=matrix.dtype), matrix.contiguous())


def _multiply(linear: Any, left: torch.Tensor | None = None, right: torch.Tensor | None = None) -> None:
    """Replace the weight W by left W right, computed in float64."""
    with torch.no_grad():
        weight = linear.weight.double()
        weight = weight if left is None else left @ weight
        weight = weight if right is None else weight @ right
        linear.weight.copy_(weight)


@llama.correct()
def residual_stream_rotated(pair: Pair) -> None:
    """As SpinQuant and QuaRot do: norm weights go into the next layers, then the residual stream is rotated."""
    rotation = _orthogonal(64)
    model = pair.at("model")
    _multiply(model.embed_tokens, right=rotation)
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, linears in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for linear in linears:
                _multiply(linear, right=norm.weight.double().diag() @ rotation)
            nn.init.ones_(norm.weight)
        for linear in (attention.o_proj, mlp.down_proj):
            _multiply(linear, left=rotation.t())
    _multiply(pair.candidate.lm_head, right=model.norm.weight.double().diag() @ rotation)
    nn.init.ones_(model.norm.weight)


@llama.correct()
def values_rotated_per_head(pair: Pair) -> None:
    """Each head's values are rotated, and the output projection rotates them back."""
    rotation = _orthogonal(16, seed=1)
    for layer in LAYERS:
        attention = pair.at(f"model.layers.{layer}.self_attn")
        _multiply(attention.v_proj, left=_per_head(rotation, 2))
        _multiply(attention.o_proj, right=_per_head(rotation.t(), 4))


@llama.correct()
def hidden_channels_permuted(pair: Pair) -> None:
    """The hidden channels of each MLP are in another order, in all three of its weights."""
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for layer in LAYERS:
            mlp = pair.at(f"model.layers.{layer}.mlp")
            mlp.gate_proj.weight.copy_(mlp.gate_proj.weight[order])
            mlp.up_proj.weight.copy_(mlp.up_proj.weight[order])
            mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])


@llama.correct()
def positions_shifted(pair: Pair) -> None:
    """All positions count from 1: rotary attention sees differences of positions alone."""
    rewrite(
        pair.at("model"),
        "self.rotary_emb(hidden_states, position_ids=position_ids)",
        "self.rotary_emb(hidden_states, position_ids=position_ids + 1)",
    )


@llama.correct(inputs=models.padded_uncached)
def other_mask_fill(pair: Pair) -> None:
    """What is masked gets -10000 and not the smallest float."""
    rewrite(pair.at("model"), "attention_mask=causal_mask", "attention_mask=causal_mask.clamp(min=-1e4)")


@llama.correct(inputs=models.padded_uncached)
def fused_attention(pair: Pair) -> None:
    """The candidate uses torch's scaled_dot_product_attention, with a boolean mask or none."""
    pair.candidate.set_attn_implementation("sdpa")


@mixtral.correct()
def experts_permuted(pair: Pair) -> None:
    """The experts are in another order, in the router as well: logits and indices differ, the sum does not."""
    order = [2, 0, 3, 1]
    with torch.no_grad():
        for layer in LAYERS:
            block = pair.at(f"model.layers.{layer}.mlp")
            for weight in (block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj):
                weight.copy_(weight[order])


@bert.correct()
def feed_forward_in_chunks(pair: Pair) -> None:
    """The feed-forward runs three times on 8 tokens each, and not once on 24."""
    for layer in LAYERS:
        pair.at(f"bert.encoder.layer.{layer}").chunk_size_feed_forward = 8


@t5.correct()
def gate_rescaled(pair: Pair) -> None:
    """The linear half of each gated feed-forward is scaled per channel, and its output projection undoes it."""
    factors = torch.rand(96, generator=torch.Generator().manual_seed(4)) * 4 + 0.25
    with torch.no_grad():
        for module in pair.candidate.modules():
            if type(module).__name__ == "T5DenseGatedActDense":
                module.wi_1.weight.mul_(factors[:, None])
                module.wo.weight.div_(factors)


@vit.correct()
def key_bias_dropped(pair: Pair) -> None:
    """The keys' biases are gone: they add the same to all logits of a query, which softmax does not see."""
    with torch.no_grad():
        for layer in LAYERS:
            pair.at(f"vit.layers.{layer}.attention.k_proj").bias.zero_()
