"""A tiny random-weight Llama with grouped heads (4 query, 2 key-value heads), and tokens for it."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 256


def tiny(seed: int = 0) -> LlamaForCausalLM:
    """Return a Llama of 2 layers, hidden size 64, in eval mode; equal seeds give equal weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tokens(seed: int = 0, length: int = 32, batch: int = 1) -> dict[str, torch.Tensor]:
    """Return random tokens: `input_ids` and `attention_mask` (all ones), both int64 [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
