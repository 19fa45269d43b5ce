"""A tiny random-weight Qwen3-VL, an image with a question for it, and a wrapper of it with a real bug.

The sizes are those of TICO's own tracing example: 2 vision blocks with deepstack at both, 2 text layers,
hidden size 64, 1000 tokens. 77 modules are called.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from qtrace.errors import SourceError, UsageError

VOCABULARY = 1000
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START_TOKEN = VOCABULARY - 2, VOCABULARY - 1, VOCABULARY - 3
# The result of Qwen's processor for a picture of 128 x 96 pixels: patches per (frame, column, row), each of 3 channels
# x 2 frames x 16 x 16 pixels; a 2 x 2 square of patches becomes one token.
GRID = (1, 20, 14)
PATCH_SIZE = 3 * 2 * 16 * 16
MERGE = 2


def tiny(seed: int = 42) -> Qwen3VLForConditionalGeneration:
    """Return the tiny Qwen3-VL in eval mode, with eager attention; equal seeds give equal weights."""
    config = Qwen3VLConfig(
        vision_config={
            "hidden_size": 64,
            "out_hidden_size": 64,
            "num_heads": 4,
            "depth": 2,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": MERGE,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "max_position_embeddings": 1024,
            "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]},
            "use_cache": False,
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START_TOKEN,
    )
    # Eager attention, so that the additive mask is a tensor that is visible on both sides.
    config.text_config._attn_implementation = "eager"
    config.vision_config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(config).eval()


def image_and_text(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return one image inside a question of 84 tokens, as Qwen's processor would lay it out.

    `input_ids`, `attention_mask` (all ones) and `mm_token_type_ids` (1 at image tokens) are int64 [1, 84],
    `pixel_values` is float32 [280, 1536] in [-1, 1], `image_grid_thw` is int64 [1, 3].
    """
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = GRID
    patches = frames * height * width
    words = torch.randint(0, VISION_START_TOKEN, (13,), generator=generator).tolist()
    image = [IMAGE_TOKEN] * (patches // MERGE**2)
    input_ids = torch.tensor([[*words[:3], VISION_START_TOKEN, *image, *words[3:]]])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.rand(patches, PATCH_SIZE, generator=generator) * 2 - 1,
        "image_grid_thw": torch.tensor([GRID]),
        "mm_token_type_ids": (input_ids == IMAGE_TOKEN).long(),
    }


def mask_bug(reference: nn.Module) -> nn.Module:
    """Return `reference` wrapped by tico, with the attention-mask bug that TICO's pull request 630 fixed.

    The wrapped text model passes the padding mask (int64 [1, 84], ones) to its layers instead of building a causal one
    (float32 [1, 1, 84, 84]), and the attention adds it to its logits as it is. Only this instance is changed, not
    tico's classes. The candidate shares its weights with `reference`.

    Raises:
        UsageError: `reference` is no Qwen3-VL.
        SourceError: tico is not installed, or this version of it has no such methods.
    """
    from qtrace.engine.samples import as_samples
    from qtrace.toolkits.tico import wrap

    if not isinstance(reference, Qwen3VLForConditionalGeneration):
        raise UsageError(
            f"mask_bug wraps a Qwen3-VL, and the reference is {type(reference).__name__}; "
            "use qtrace.zoo.qwen3_vl:tiny as the reference"
        )
    candidate = wrap(reference, as_samples(image_and_text()), quantize=False)
    for method in ("_normalize_attention_mask", "_build_attention_mask"):
        owners = [module for module in candidate.modules() if hasattr(module, method)]
        if not owners:
            raise SourceError(f"mask_bug knows tico 0.3.0, and the installed one has no method {method}")
        for module in owners:
            setattr(module, method, _unchanged)
    return candidate


def _unchanged(attention_mask: torch.Tensor | None, **_: object) -> torch.Tensor | None:
    """Replace the methods that make a causal mask of a padding mask."""
    return attention_mask
