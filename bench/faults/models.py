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
# Where a text of `clip_tokens` ends; greater than all other tokens of the vocabulary.
END = VOCABULARY - 1
FRAMES = 24


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


def _sizes(**more: Any) -> dict[str, Any]:
    """Return the sizes that most configs have, under their usual names, and `more`."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": _SPREAD,
        "attn_implementation": "eager",
        **more,
    }


def _decoder(**more: Any) -> dict[str, Any]:
    positions_and_tokens = {"max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    return _sizes(**{"num_key_value_heads": 2, **positions_and_tokens, **more})


def _gpt2(**more: Any) -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=_SPREAD,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **more,
    )
    return transformers.GPT2LMHeadModel(config)


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
    config = transformers.BertConfig(**_sizes(max_position_embeddings=64))
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


@seeded(1)
def gpt2() -> Any:
    """Return a GPT-2: learned positions, fused projections stored as [in, out], a head tied to the embedding."""
    return _gpt2()


@seeded(1)
def qwen2_moe() -> Any:
    """Return a Qwen2-MoE with shared experts, biases on query, key and value, and a window of 6 in its first layer."""
    config = transformers.Qwen2MoeConfig(
        **_sizes(
            moe_intermediate_size=48,
            shared_expert_intermediate_size=48,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            use_sliding_window=True,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=256,
            tie_word_embeddings=False,
            experts_implementation="eager",
        )
    )
    return transformers.Qwen2MoeForCausalLM(config)


@seeded(1)
def gemma3() -> Any:
    """Return a Gemma 3 text model: norms of queries and keys, two rotary bases, a window of 6, a softcap that bites."""
    config = transformers.Gemma3TextConfig(
        **_sizes(
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            final_logit_softcapping=3.0,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            pad_token_id=0,
        )
    )
    return transformers.Gemma3ForCausalLM(config)


@seeded(1)
def opt() -> Any:
    """Return an OPT with an offset of 2 in its positions, and projections into and out of a narrower embedding."""
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        word_embed_proj_dim=48,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        init_std=_SPREAD,
        attn_implementation="eager",
        tie_word_embeddings=False,
        pad_token_id=1,
    )
    return transformers.OPTForCausalLM(config)


@seeded(1)
def clip_text() -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_factor=3.0,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    return transformers.CLIPTextModelWithProjection(config)


@seeded(1)
def deberta() -> Any:
    """Return a DeBERTa v2: disentangled attention in buckets, and a convolution beside the first layer."""
    config = transformers.DebertaV2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        max_relative_positions=32,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=False,
        conv_kernel_size=3,
        position_biased_input=True,
        initializer_range=_SPREAD,
        type_vocab_size=0,
    )
    return transformers.DebertaV2ForMaskedLM(config)


@seeded(1)
def electra_to_gpt2() -> Any:
    """Return an ELECTRA encoder, its embeddings narrower than its layers, below a GPT-2 with cross-attention."""
    encoder = transformers.ElectraConfig(**_sizes(embedding_size=32, num_hidden_layers=1, max_position_embeddings=64))
    return transformers.EncoderDecoderModel(
        encoder=transformers.ElectraModel(encoder), decoder=_gpt2(add_cross_attention=True, is_decoder=True)
    )


@seeded(1)
def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=FRAMES,
        max_target_positions=32,
        init_std=_SPREAD,
        attn_implementation="eager",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    return transformers.WhisperForConditionalGeneration(config)


@seeded(1)
def gpt_neox() -> Any:
    """Return a GPT-NeoX: attention and MLP in parallel, half of each head rotated, fused projections."""
    config = transformers.GPTNeoXConfig(
        **_sizes(
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            tie_word_embeddings=False,
        )
    )
    return transformers.GPTNeoXForCausalLM(config)


@seeded(1)
def mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        expand=2,
        time_step_rank=4,
        initializer_range=_SPREAD,
        tie_word_embeddings=False,
    )
    return transformers.MambaForCausalLM(config)


@seeded(2)
def albert() -> Any:
    config = transformers.AlbertConfig(
        **_sizes(
            embedding_size=32, num_hidden_layers=4, num_hidden_groups=1, inner_group_num=1, max_position_embeddings=64
        )
    )
    return transformers.AlbertForMaskedLM(config)


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


def left_padded() -> dict[str, Any]:
    """Return tokens for a decoder whose second row begins with a quarter of padding."""
    inputs = tokens()
    inputs["attention_mask"][1, : LENGTH // 4] = 0
    return {**inputs, "use_cache": False}


def clip_tokens() -> dict[str, Any]:
    """Return two texts that end at places of their own, with padding after that."""
    inputs = tokens()
    inputs["input_ids"].clamp_(max=END - 1)
    inputs["input_ids"][0, -2], inputs["input_ids"][1, 15] = END, END
    inputs["attention_mask"][1, 16:] = 0
    return inputs


def typed() -> dict[str, Any]:
    """Return tokens for a decoder with token types beside them."""
    return {**tokens(), "token_type_ids": tokens(seed=4)["input_ids"], "use_cache": False}


def speech() -> dict[str, Any]:
    """Return two random log-mel spectrograms, float32 [2, 8, 48], and 10 decoder tokens."""
    features = torch.randn(2, 8, 2 * FRAMES, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "decoder_input_ids": tokens(length=10, seed=1)["input_ids"], "use_cache": False}
