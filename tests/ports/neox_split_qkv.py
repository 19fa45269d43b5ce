"""GPT-NeoX, ported with separate query, key and value projections.

The reference keeps one fused projection whose rows are ordered head by head: the query, key and value rows of
head 0, then those of head 1, and so on. The port takes them apart and returns the logits alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM


@dataclass
class ModelArgs:
    """Sizes and constants of the decoder."""

    vocab: int
    width: int
    ffn_width: int
    depth: int
    heads: int
    rotary_dims: int
    rope_base: float
    ln_eps: float
    max_len: int


class PartialRotary(nn.Module):
    """Rotates the first dimensions of every head and leaves the others as they are."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dims: int, base: float, max_len: int) -> None:
        super().__init__()
        self.dims = dims
        inv = base ** (-torch.arange(0, dims, 2).float() / dims)
        angles = torch.outer(torch.arange(max_len).float(), inv)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns a tensor of shape (batch, time, heads, head size)."""
        t = x.shape[1]
        cos, sin = self.cos[None, :t, None, :], self.sin[None, :t, None, :]
        a, b, rest = torch.split(x, [self.dims // 2, self.dims // 2, x.shape[-1] - self.dims], dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class SelfAttention(nn.Module):
    """Causal attention with four projections of its own."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.heads = args.heads
        self.wq = nn.Linear(args.width, args.width)
        self.wk = nn.Linear(args.width, args.width)
        self.wv = nn.Linear(args.width, args.width)
        self.wo = nn.Linear(args.width, args.width)

    def forward(self, x: Tensor, rotary: PartialRotary, visible: Tensor) -> Tensor:
        b, t, d = x.shape
        q = rotary(self.wq(x).view(b, t, self.heads, -1))
        k = rotary(self.wk(x).view(b, t, self.heads, -1))
        v = self.wv(x).view(b, t, self.heads, -1)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d // self.heads)
        probs = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", probs, v).reshape(b, t, d)
        out: Tensor = self.wo(mixed)
        return out


class FeedForward(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.up = nn.Linear(args.width, args.ffn_width)
        self.act = nn.GELU()
        self.down = nn.Linear(args.ffn_width, args.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class ParallelBlock(nn.Module):
    """Attention and feed-forward both read the block's input; their results are added to it."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.ln_attn = nn.LayerNorm(args.width, eps=args.ln_eps)
        self.ln_ffn = nn.LayerNorm(args.width, eps=args.ln_eps)
        self.attn = SelfAttention(args)
        self.ffn = FeedForward(args)

    def forward(self, x: Tensor, rotary: PartialRotary, visible: Tensor) -> Tensor:
        out: Tensor = x + self.attn(self.ln_attn(x), rotary, visible) + self.ffn(self.ln_ffn(x))
        return out


class NeoXDecoder(nn.Module):
    """The whole decoder; `forward` returns the logits."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.tok_embed = nn.Embedding(args.vocab, args.width)
        self.rotary = PartialRotary(args.rotary_dims, args.rope_base, args.max_len)
        self.blocks = nn.ModuleList([ParallelBlock(args) for _ in range(args.depth)])
        self.ln_out = nn.LayerNorm(args.width, eps=args.ln_eps)
        self.unembed = nn.Linear(args.width, args.vocab, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        t = input_ids.shape[1]
        visible = torch.ones(t, t, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if attention_mask is not None:
            visible = visible & attention_mask.bool()[:, None, None, :]
        x = self.tok_embed(input_ids)
        for block in self.blocks:
            x = block(x, self.rotary, visible)
        logits: Tensor = self.unembed(self.ln_out(x))
        return logits


def convert_weights(source: dict[str, Tensor], args: ModelArgs) -> dict[str, Tensor]:
    """Renames the reference's weights and takes the fused projections apart."""
    target = {"tok_embed.weight": source["gpt_neox.embed_in.weight"], "unembed.weight": source["lm_head.weight"]}
    for kind in ("weight", "bias"):
        target[f"ln_out.{kind}"] = source[f"gpt_neox.final_layer_norm.{kind}"]
        for i in range(args.depth):
            old, new = f"gpt_neox.layers.{i}", f"blocks.{i}"
            fused = source[f"{old}.attention.query_key_value.{kind}"]
            parts = fused.reshape(args.heads, 3, args.width // args.heads, *fused.shape[1:])
            for j, name in enumerate(("wq", "wk", "wv")):
                target[f"{new}.attn.{name}.{kind}"] = parts[:, j].flatten(0, 1)
            target[f"{new}.attn.wo.{kind}"] = source[f"{old}.attention.dense.{kind}"]
            target[f"{new}.ffn.up.{kind}"] = source[f"{old}.mlp.dense_h_to_4h.{kind}"]
            target[f"{new}.ffn.down.{kind}"] = source[f"{old}.mlp.dense_4h_to_h.{kind}"]
            target[f"{new}.ln_attn.{kind}"] = source[f"{old}.input_layernorm.{kind}"]
            target[f"{new}.ln_ffn.{kind}"] = source[f"{old}.post_attention_layernorm.{kind}"]
    return target


def reference() -> nn.Module:
    """A GPT-NeoX of three layers with random weights, biases and norm weights."""
    settings: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "hidden_act": "gelu",
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    build: Callable[[GPTNeoXConfig], nn.Module] = GPTNeoXForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(11)
        model = build(GPTNeoXConfig(**settings))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def port(reference: nn.Module) -> nn.Module:
    """The decoder above with the weights of `reference`."""
    config: Any = reference.config
    rope = config.rope_parameters
    args = ModelArgs(
        vocab=config.vocab_size,
        width=config.hidden_size,
        ffn_width=config.intermediate_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        rotary_dims=int(config.hidden_size // config.num_attention_heads * rope["partial_rotary_factor"]),
        rope_base=rope["rope_theta"],
        ln_eps=config.layer_norm_eps,
        max_len=config.max_position_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        model = NeoXDecoder(args)
    model.load_state_dict(convert_weights(reference.state_dict(), args))
    return model.eval()


def inputs() -> dict[str, Tensor]:
    """Two sequences, the second padded on the right."""
    generator = torch.Generator().manual_seed(12)
    input_ids = torch.randint(3, 96, (2, 9), generator=generator)
    input_ids[0, 2] = 7
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 7:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _scale(name: str, row: int, factor: float = 1.5) -> Callable[[nn.Module], None]:
    """A function that multiplies one row (or entry) of the named parameter."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[row].mul_(factor)

    return apply


def _shift(name: str, entry: int, amount: float = 0.5) -> Callable[[nn.Module], None]:
    """A function that adds to one entry of the named parameter."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name)[entry].add_(amount)

    return apply


_LAYER = "gpt_neox.layers"
FAULTS: list[tuple[str, str, Callable[[nn.Module], None]]] = [
    ("gpt_neox.embed_in", "row of token 7", _scale("tok_embed.weight", 7)),
    (f"{_LAYER}.0.attention.query_key_value", "query row 2 (rotated)", _scale("blocks.0.attn.wq.weight", 2)),
    (f"{_LAYER}.1.attention.query_key_value", "value row 20", _scale("blocks.1.attn.wv.weight", 20)),
    (f"{_LAYER}.2.attention.dense", "row 5", _scale("blocks.2.attn.wo.weight", 5)),
    (f"{_LAYER}.0.mlp.dense_h_to_4h", "bias entry 33", _shift("blocks.0.ffn.up.bias", 33)),
    (f"{_LAYER}.1.mlp.dense_4h_to_h", "row 40", _scale("blocks.1.ffn.down.weight", 40)),
    (f"{_LAYER}.1.input_layernorm", "weight entry 9", _scale("blocks.1.ln_attn.weight", 9)),
    (f"{_LAYER}.2.post_attention_layernorm", "bias entry 14", _shift("blocks.2.ln_ffn.bias", 14)),
    ("gpt_neox.final_layer_norm", "weight entry 3", _scale("ln_out.weight", 3)),
    ("lm_head", "row 50", _scale("unembed.weight", 50)),
]
