"""Llama with grouped heads, ported with fused projections and a plain-tensor cache.

The port has one projection for query, key and value and one for the two inputs of the gated feed-forward. It returns
the logits together with a list of (key, value) tensors of shape (batch, kv heads, time, head size).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

KVPair = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Divides by the root of the mean square and multiplies by a weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.gain


def rotary_table(head_dim: int, base: float, start: int, length: int) -> Tensor:
    """Cosines and sines for `length` positions: shape (2, length, head_dim / 2)."""
    inv = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.arange(start, start + length).float()[:, None] * inv[None, :]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates the two halves of the last dimension against each other."""
    cos, sin = table[0], table[1]
    lo, hi = x.chunk(2, dim=-1)
    return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention over a fused projection."""

    def __init__(self, dim: int, n_head: int, n_kv: int) -> None:
        super().__init__()
        self.n_head, self.n_kv, self.head_dim = n_head, n_kv, dim // n_head
        self.wqkv = nn.Linear(dim, (n_head + 2 * n_kv) * self.head_dim, bias=False)
        self.wo = nn.Linear(n_head * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, table: Tensor, past: KVPair | None) -> tuple[Tensor, KVPair]:
        bsz, seq, _ = x.shape
        qkv = self.wqkv(x).view(bsz, seq, self.n_head + 2 * self.n_kv, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split([self.n_head, self.n_kv, self.n_kv], dim=1)
        q, k = rotate(q, table), rotate(k, table)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        group = self.n_head // self.n_kv
        keys, values = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        total = k.shape[2]
        allowed = torch.ones(seq, total, dtype=torch.bool, device=x.device).tril(total - seq)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)
        y = self.wo(y.transpose(1, 2).reshape(bsz, seq, -1))
        return y, (k, v)


class SwiGLU(nn.Module):
    """Gated feed-forward; the first half of `w_in` is the gate."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.w_out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w_in(x).chunk(2, dim=-1)
        y: Tensor = self.w_out(F.silu(gate) * up)
        return y


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward with residual connections."""

    def __init__(self, dim: int, hidden: int, n_head: int, n_kv: int, eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps)
        self.attention = Attention(dim, n_head, n_kv)
        self.ffn_norm = RMSNorm(dim, eps)
        self.feed_forward = SwiGLU(dim, hidden)

    def forward(self, x: Tensor, table: Tensor, past: KVPair | None) -> tuple[Tensor, KVPair]:
        delta, present = self.attention(self.attention_norm(x), table, past)
        x = x + delta
        return x + self.feed_forward(self.ffn_norm(x)), present


class Transformer(nn.Module):
    """The language model; `forward` returns the logits and the cache of every layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, n_head = config.hidden_size, config.num_attention_heads
        self.head_dim: int = dim // n_head
        self.rope_base: float = config.rope_parameters["rope_theta"]
        self.tok_embeddings = nn.Embedding(config.vocab_size, dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, config.intermediate_size, n_head, config.num_key_value_heads, config.rms_norm_eps)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(dim, config.rms_norm_eps)
        self.output = nn.Linear(dim, config.vocab_size, bias=False)

    def forward(self, input_ids: Tensor, past: list[KVPair] | None = None) -> tuple[Tensor, list[KVPair]]:
        start = past[0][0].shape[2] if past else 0
        table = rotary_table(self.head_dim, self.rope_base, start, input_ids.shape[1]).to(input_ids.device)
        h = self.tok_embeddings(input_ids)
        cache: list[KVPair] = []
        for i, block in enumerate(self.blocks):
            h, present = block(h, table, past[i] if past else None)
            cache.append(present)
        return self.output(self.norm(h)), cache


def remap(state: dict[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Renames the reference's weights and joins those that the port keeps fused."""
    out = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.gain": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for i in range(n_layer):
        src, dst = f"model.layers.{i}", f"blocks.{i}"
        out[f"{dst}.attention.wqkv.weight"] = torch.cat([state[f"{src}.self_attn.{n}_proj.weight"] for n in "qkv"])
        out[f"{dst}.attention.wo.weight"] = state[f"{src}.self_attn.o_proj.weight"]
        out[f"{dst}.feed_forward.w_in.weight"] = torch.cat(
            [state[f"{src}.mlp.gate_proj.weight"], state[f"{src}.mlp.up_proj.weight"]]
        )
        out[f"{dst}.feed_forward.w_out.weight"] = state[f"{src}.mlp.down_proj.weight"]
        out[f"{dst}.attention_norm.gain"] = state[f"{src}.input_layernorm.weight"]
        out[f"{dst}.ffn_norm.gain"] = state[f"{src}.post_attention_layernorm.weight"]
    return out


def reference() -> nn.Module:
    """A Llama of three layers, four heads and two key/value heads with random weights and norm weights."""
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    build: Callable[[LlamaConfig], nn.Module] = LlamaForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(21)
        model = build(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def port(reference: nn.Module) -> nn.Module:
    """The model above with the weights of `reference`."""
    config: Any = reference.config
    with torch.random.fork_rng(devices=[]):
        model = Transformer(config)
    model.load_state_dict(remap(reference.state_dict(), config.num_hidden_layers))
    return model.eval()


def inputs() -> dict[str, Tensor]:
    """Two sequences of ten tokens; token 5 is in the first."""
    generator = torch.Generator().manual_seed(22)
    input_ids = torch.randint(3, 80, (2, 10), generator=generator)
    input_ids[0, 1] = 5
    return {"input_ids": input_ids}


def _scale(name: str, row: int, factor: float = 1.5) -> Callable[[nn.Module], None]:
    """A function that multiplies one row (or entry) of the named parameter."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[row].mul_(factor)

    return apply


# Rows of the fused weights: wqkv holds 48 query, 24 key and 24 value rows; w_in holds 112 gate and 112 up rows.
FAULTS: list[tuple[str, str, Callable[[nn.Module], None]]] = [
    ("model.embed_tokens", "row of token 5", _scale("tok_embeddings.weight", 5)),
    ("model.layers.0.self_attn.q_proj", "row 17", _scale("blocks.0.attention.wqkv.weight", 17)),
    ("model.layers.1.self_attn.k_proj", "row 6", _scale("blocks.1.attention.wqkv.weight", 48 + 6)),
    ("model.layers.2.self_attn.v_proj", "row 13", _scale("blocks.2.attention.wqkv.weight", 72 + 13)),
    ("model.layers.1.self_attn.o_proj", "row 30", _scale("blocks.1.attention.wo.weight", 30)),
    ("model.layers.0.mlp.gate_proj", "row 60", _scale("blocks.0.feed_forward.w_in.weight", 60)),
    ("model.layers.1.mlp.up_proj", "row 8", _scale("blocks.1.feed_forward.w_in.weight", 112 + 8)),
    ("model.layers.2.mlp.down_proj", "row 21", _scale("blocks.2.feed_forward.w_out.weight", 21)),
    ("model.layers.1.input_layernorm", "weight entry 4", _scale("blocks.1.attention_norm.gain", 4)),
    ("model.layers.2.post_attention_layernorm", "weight entry 35", _scale("blocks.2.ffn_norm.gain", 35)),
    ("model.norm", "weight entry 11", _scale("norm.gain", 11)),
    ("lm_head", "row 42", _scale("output.weight", 42)),
]
