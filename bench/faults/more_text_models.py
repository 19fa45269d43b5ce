"""More tiny text models with random weights: learned, rotary, relative and no positions; experts; a state space."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from bench.faults.models import LENGTH, VOCABULARY, seeded, tokens

_SPREAD = 0.125
# Where a text of `clip_tokens` ends; greater than all other tokens of the vocabulary.
END = VOCABULARY - 1
FRAMES = 24


@seeded(1)
def gpt2() -> Any:
    """Return a GPT-2: learned positions, fused projections stored as [in, out], a head tied to the embedding."""
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
    )
    return transformers.GPT2LMHeadModel(config)


@seeded(1)
def qwen2_moe() -> Any:
    """Return a Qwen2-MoE with shared experts, biases on query, key and value, and a window of 6 in its first layer."""
    config = transformers.Qwen2MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256,
        initializer_range=_SPREAD,
        attn_implementation="eager",
        tie_word_embeddings=False,
        experts_implementation="eager",
    )
    return transformers.Qwen2MoeForCausalLM(config)


@seeded(1)
def gemma3() -> Any:
    """Return a Gemma 3 text model: norms of queries and keys, two rotary bases, a window of 6, a softcap that bites."""
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=3.0,
        max_position_embeddings=256,
        initializer_range=_SPREAD,
        attn_implementation="eager",
        tie_word_embeddings=False,
        pad_token_id=0,
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
    encoder = transformers.ElectraConfig(
        vocab_size=VOCABULARY,
        embedding_size=32,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=_SPREAD,
        attn_implementation="eager",
    )
    decoder = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=_SPREAD,
        add_cross_attention=True,
        is_decoder=True,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.EncoderDecoderModel(
        encoder=transformers.ElectraModel(encoder), decoder=transformers.GPT2LMHeadModel(decoder)
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
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        initializer_range=_SPREAD,
        attn_implementation="eager",
        tie_word_embeddings=False,
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
