"""Tiny models of real architectures with random weights, and inputs for them.

Weights are wide enough for attention to be sharp, and norms and biases are random: with the usual initial values, many
a real fault (a bias lost, two norms swapped) would change nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 96
LENGTH = 24
_SPREAD = 0.125


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move all vectors (biases, weights of norms) off their initial value; return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def seeded(seed: int = 0) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Build a model once, from this seed, with vectors off their initial value."""

    def decorate(build: Callable[[], Any]) -> Callable[[], Any]:
        @functools.cache
        @functools.wraps(build)
        def model() -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return enliven(build(), seed)

        return model

    return decorate


def _decoder(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": _SPREAD,
        "attn_implementation": "eager",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        **more,
    }


@seeded()
def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_decoder(tie_word_embeddings=False)))


@seeded()
def llama_square() -> Any:
    """Return a Llama without grouped heads, so that all four projections are square and interchangeable."""
    config = transformers.LlamaConfig(**_decoder(num_key_value_heads=4, tie_word_embeddings=False))
    return transformers.LlamaForCausalLM(config)


@seeded()
def llama_tied() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_decoder(tie_word_embeddings=True)))


@seeded()
def llama_deep() -> Any:
    config = transformers.LlamaConfig(**_decoder(num_hidden_layers=6, tie_word_embeddings=False))
    return transformers.LlamaForCausalLM(config)


@seeded()
def gemma2() -> Any:
    """Return a Gemma 2 whose softcaps bite and whose first layer has a window of 6 tokens."""
    config = transformers.Gemma2Config(
        **_decoder(
            head_dim=16,
            query_pre_attn_scalar=16,
            final_logit_softcapping=3.0,
            attn_logit_softcapping=5.0,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            tie_word_embeddings=False,
        )
    )
    return transformers.Gemma2ForCausalLM(config)


@seeded()
def mixtral() -> Any:
    config = transformers.MixtralConfig(
        **_decoder(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, tie_word_embeddings=False),
        experts_implementation="eager",
    )
    return transformers.MixtralForCausalLM(config)


@seeded()
def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=_SPREAD,
        attn_implementation="eager",
    )
    return transformers.BertForMaskedLM(config)


@seeded()
def t5() -> Any:
    """Return a T5 with a gated feed-forward (as in T5 1.1), sharp attention and its relative position biases."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
        initializer_factor=1.0,
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    return transformers.T5ForConditionalGeneration(config)


@seeded()
def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_position_embeddings=64,
        init_std=_SPREAD,
        attn_implementation="eager",
    )
    return transformers.BartForConditionalGeneration(config)


@seeded()
def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        num_labels=10,
        initializer_range=_SPREAD,
        attn_implementation="eager",
    )
    return transformers.ViTForImageClassification(config)


def tokens(length: int = LENGTH, batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return random tokens, int64 [batch, length], and a mask of ones."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def uncached() -> dict[str, Any]:
    """Return tokens for a decoder, without a cache among its outputs."""
    return {**tokens(), "use_cache": False}


def padded() -> dict[str, Any]:
    """Return tokens whose second row ends in a third of padding."""
    inputs = tokens()
    inputs["attention_mask"][1, -LENGTH // 3 :] = 0
    return inputs


def padded_uncached() -> dict[str, Any]:
    """Return padded tokens for a decoder, without a cache among its outputs."""
    return {**padded(), "use_cache": False}


def translation() -> dict[str, Any]:
    """Return a padded source and a shorter target for an encoder-decoder."""
    return {**padded(), "decoder_input_ids": tokens(length=10, seed=1)["input_ids"], "use_cache": False}


def image() -> dict[str, Any]:
    """Return two random images, float32 [2, 3, 32, 32]."""
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
