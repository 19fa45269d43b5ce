"""Qwen3-VL against its wrapping by tico: real bugs of such wrappers, put back into tico's code."""

from __future__ import annotations

import copy
import functools
from typing import Any

from bench.faults.case import Pair, Suite
from bench.faults.reasons import EPS, ROW_NEGATED, TANH, WEIGHT_CLIPS
from bench.faults.rewrite import rewrite
from qtrace.engine.samples import as_samples
from qtrace.toolkits.tico import wrap
from qtrace.zoo import qwen3_vl

tiny = functools.cache(qwen3_vl.tiny)


@functools.cache
def _wrapped(quantize: bool) -> Any:
    return wrap(copy.deepcopy(tiny()), as_samples(qwen3_vl.image_and_text()), quantize=quantize)


def _padded() -> dict[str, Any]:
    """Return an image and a question whose last five tokens are padding."""
    inputs = qwen3_vl.image_and_text()
    inputs["attention_mask"][:, -5:] = 0
    return inputs


suite = Suite("qwen3_vl", tiny, qwen3_vl.image_and_text, lambda _: copy.deepcopy(_wrapped(False)))
quantized = Suite("qwen3_vl", tiny, qwen3_vl.image_and_text, lambda _: copy.deepcopy(_wrapped(True)))


@suite.fault("argument", at="model.language_model", argument="attention_mask")
def padding_mask_handed_down(pair: Pair) -> None:
    """The text model hands its layers the padding mask, which attention adds to its logits as it is (TICO#630)."""
    pair.candidate = qwen3_vl.mask_bug(copy.deepcopy(pair.reference))


@suite.fault("argument", at="model.language_model", argument="attention_mask")
def causal_mask_one_off(pair: Pair) -> None:
    """The text model's causal mask shows one token of the future, in the helper that slices it."""
    rewrite(
        pair.unwrapped(),
        "self.causal_mask_template[..., row_start:row_end, :kv_len]",
        "self.causal_mask_template[..., row_start + 1 : row_end + 1, :kv_len]",
        within="_slice_causal",
    )


@suite.fault("container", at="model.visual.merger", kind=["structure", "miscalls"])
def merger_without_norm(pair: Pair) -> None:
    """The patch merger does not call its norm (TICO#616)."""
    rewrite(pair.unwrapped(), "self.norm(x).view", "x.view")


@suite.fault("leaf", at="model.visual.merger.act_fn", reason=TANH)
def merger_gelu_by_tanh(pair: Pair) -> None:
    """The merger's GELU is the tanh approximation, that of the vision blocks (TICO#734)."""
    pair.unwrapped("model.visual.merger").act_fn.wrapped = copy.deepcopy(
        pair.unwrapped("model.visual.blocks.0.mlp.act_fn")
    )


@suite.fault("container", at="model.visual.blocks.1.attn")
def fused_projection_split_by_head(pair: Pair) -> None:
    """One vision attention splits its fused projection into heads first and into query, key and value second."""
    rewrite(
        pair.unwrapped(),
        ".reshape(seq_length, 3, self.num_heads, -1)\n            .permute(1, 0, 2, 3)",
        ".reshape(seq_length, self.num_heads, 3, -1)\n            .permute(2, 0, 1, 3)",
    )


@suite.fault("argument", at="model", argument="deepstack_visual_embeds")
def deepstack_reversed(pair: Pair) -> None:
    """The model hands its text model the deepstack features from last to first."""
    rewrite(
        pair.unwrapped(),
        "deepstack_visual_embeds=deepstack_visual_embeds",
        "deepstack_visual_embeds=deepstack_visual_embeds[::-1]",
    )


@suite.fault("argument", at="model", argument="position_ids")
def positions_of_text_alone(pair: Pair) -> None:
    """The model hands its text model positions that count all tokens alike, as if there were no image."""
    rewrite(
        pair.unwrapped(),
        "position_ids=position_ids,",
        "position_ids=torch.arange(inputs_embeds.shape[1]).expand(3, 1, -1),",
    )


@suite.fault("parameter", at="model.language_model.layers.1.mlp.gate_proj", reason=ROW_NEGATED)
def row_sign_flipped(pair: Pair) -> None:
    """One row of a wrapped linear layer's weight has the opposite sign."""
    pair.unwrapped().module.weight[40:56].neg_()


@suite.fault("leaf", at="model.language_model.layers.0.input_layernorm", reason=EPS)
def eps_default(pair: Pair) -> None:
    """A wrapped RMSNorm has eps 1e-5 in place of 1e-6; the embeddings that it norms are small."""
    pair.unwrapped().eps = 1e-5


@quantized.fault("quantization", at="model.language_model.layers.1.mlp.down_proj", reason=WEIGHT_CLIPS)
def quantized_range_clips(pair: Pair) -> None:
    """Among uint8 layers, the scales of one weight are a fifth of what they should be."""
    pair.unwrapped().obs_weight._cached_scale.div_(5)


@suite.correct()
def wrapped(pair: Pair) -> None:
    """Tico's wrappers without quantization: scales folded into keys, heads unrolled, another mask fill."""


@suite.correct(inputs=_padded)
def wrapped_and_padded(pair: Pair) -> None:
    """The same with padding at the end of the question."""


@quantized.correct("drift", "clean")
def wrapped_and_quantized(pair: Pair) -> None:
    """Tico's fake quantization to uint8, calibrated on these inputs: all modules are a little off."""
