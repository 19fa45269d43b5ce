"""Llama against its wrapping by tico, fake quantization off and on, at batch 1 and 2."""

from __future__ import annotations

import copy
import functools
from typing import Any

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import CLIPS, COARSE, UNCALIBRATED, WEIGHT_CLIPS, all_of
from bench.faults.rewrite import rewrite
from qtrace.engine.samples import as_samples
from qtrace.toolkits.tico import wrap


def _one() -> dict[str, Any]:
    return {"input_ids": models.tokens(batch=1)["input_ids"], "use_cache": False}


def _two() -> dict[str, Any]:
    return {"input_ids": models.tokens()["input_ids"], "use_cache": False}


def _padded() -> dict[str, Any]:
    inputs = models.tokens(batch=1)
    inputs["attention_mask"][:, -6:] = 0
    return {**inputs, "use_cache": False}


@functools.cache
def _wrapped(quantize: bool, weights: str | None = None) -> Any:
    return wrap(copy.deepcopy(models.llama()), as_samples(_two()), quantize=quantize, weight_dtype=weights)


suite = Suite("tico_llama", models.llama, _two, lambda _: copy.deepcopy(_wrapped(False)))
quantized = Suite("tico_llama", models.llama, _two, lambda _: copy.deepcopy(_wrapped(True)))
four = Suite("tico_llama", models.llama, _one, lambda _: copy.deepcopy(_wrapped(True, "uint4")))
LAYER = "model.layers.1"


@suite.correct()
def wrapped(pair: Pair) -> None:
    """Tico's wrappers without quantization on a batch of two."""


@suite.correct(inputs=_padded)
def wrapped_and_padded(pair: Pair) -> None:
    """The same on one padded prompt."""


@suite.fault("argument", at="model", argument="attention_mask")
def causal_mask_one_off(pair: Pair) -> None:
    """The model's causal mask shows one token of the future."""
    rewrite(
        pair.unwrapped(),
        "self.causal_mask_template[..., past_len : past_len + q_len, :k_len]",
        "self.causal_mask_template[..., past_len + 1 : past_len + q_len + 1, :k_len]",
        within="_slice_causal",
    )


@suite.fault("argument", at="model", argument="position_embeddings")
def positions_from_one(pair: Pair) -> None:
    """The model takes its sines one position late and its cosines not: the rotations are none any more."""
    rewrite(
        pair.unwrapped(),
        "self.rope_sin_template[:, start:end, :]",
        "self.rope_sin_template[:, start + 1 : end + 1, :]",
        within="get_position_embeddings_for",
    )


@suite.fault("container", at=f"{LAYER}.mlp")
def up_and_gate_exchanged(pair: Pair) -> None:
    """The wrapped MLP activates the linear half."""
    rewrite(pair.unwrapped(), "a = self.act_fn(g)", "a, u = self.act_fn(u), g")


@suite.fault("container", at="model.layers.0")
def residual_of_the_normed(pair: Pair) -> None:
    """The wrapped layer takes its first residual after the norm."""
    rewrite(
        pair.unwrapped(),
        "        residual = hidden_states\n        hidden_states = self.input_layernorm(hidden_states)",
        "        hidden_states = self.input_layernorm(hidden_states)\n        residual = hidden_states",
    )


@suite.fault("leaf", at=f"{LAYER}.mlp.act_fn")
def silu_without_its_product(pair: Pair) -> None:
    """The wrapped SiLU multiplies by the sigmoid of 1.1 times its input."""
    rewrite(pair.unwrapped(), "torch.sigmoid(x_q)", "torch.sigmoid(1.1 * x_q)")


@suite.fault("container", at=f"{LAYER}.mlp", inputs=_one)
def up_and_gate_exchanged_alone(pair: Pair) -> None:
    """The same on a batch of one."""
    up_and_gate_exchanged(pair)


@suite.fault("container", at="model.layers.0", inputs=_one)
def residual_of_the_normed_alone(pair: Pair) -> None:
    """The wrapped layer's first residual is what its norm returned, on a batch of one."""
    residual_of_the_normed(pair)


@suite.fault("container", at=f"{LAYER}.self_attn", inputs=_one)
def rotated_halves_exchanged(pair: Pair) -> None:
    """One wrapped attention rotates with its halves the other way round."""
    rewrite(pair.unwrapped(), "((first, x1), dim=-1)", "((x1, first), dim=-1)", within="_rot")


@quantized.correct("drift", "clean", inputs=_one)
def wrapped_and_quantized(pair: Pair) -> None:
    """Tico's fake quantization to uint8: all modules are a little off."""


@quantized.correct("drift", "clean")
def wrapped_and_quantized_batch(pair: Pair) -> None:
    """The same on a batch of two, for which tico's mask has one row that serves both."""


@four.correct("drift", "clean")
def weights_of_four_bits(pair: Pair) -> None:
    """Activations are rounded to 8 bits and all weights to 4."""


@quantized.fault("quantization", at=f"{LAYER}.mlp.down_proj", inputs=_one, reason=WEIGHT_CLIPS)
def weight_scales_too_small(pair: Pair) -> None:
    """The scales of one weight are a third."""
    pair.unwrapped().obs_weight._cached_scale.div_(3)


@quantized.fault("quantization", at=f"{LAYER}.mlp.down_proj", reason=WEIGHT_CLIPS)
def weight_scales_too_small_batch(pair: Pair) -> None:
    """The scales of one weight are a third, on a batch of two."""
    pair.unwrapped().obs_weight._cached_scale.div_(3)


@quantized.fault("quantization", at="model.layers.0.mlp.act_fn", inputs=_one, reason=all_of(r"obs_sig|sigmoid", CLIPS))
def sigmoid_range_halved(pair: Pair) -> None:
    """The range of the sigmoid inside of one SiLU ends at a half: it clips."""
    pair.unwrapped().obs_sig._cached_scale.mul_(0.5)


@quantized.fault(
    "quantization",
    at="model.layers.0.mlp",
    kind=["introduces", "miscalls"],
    inputs=_one,
    reason=all_of(r"obs_mul|product", CLIPS),
)
def product_clipped(pair: Pair) -> None:
    """The range of the product in an MLP's own code is a fifth of the observed one."""
    pair.unwrapped().obs_mul._cached_scale.mul_(0.2)


@quantized.fault(
    "quantization", at="model.layers.0", kind=["introduces", "miscalls"], inputs=_one, reason=all_of(r"residual", CLIPS)
)
def residual_clipped(pair: Pair) -> None:
    """The range of the sum that a layer returns is a third of the observed one: its own code."""
    pair.unwrapped().obs_mlp_residual_out._cached_scale.mul_(0.33)


@quantized.fault(
    "quantization",
    at=f"{LAYER}.self_attn",
    kind=["introduces", "miscalls"],
    inputs=_one,
    reason=all_of(r"softmax", rf"{COARSE}|{UNCALIBRATED}|\beighths?\b|\b0\.1250*\b"),
)
def softmax_never_calibrated(pair: Pair) -> None:
    """The scale of attention's weights after softmax is 1 / 8: they are rounded to eighths."""
    observer = pair.unwrapped().obs_softmax
    observer._cached_scale.fill_(0.125)


@quantized.fault("quantization", at="model.embed_tokens", inputs=_one, reason=COARSE)
def embedding_of_four_bits(pair: Pair) -> None:
    """The embeddings' table is rounded to a grid 24 times too wide."""
    observer = pair.unwrapped().weight_obs
    observer._cached_scale.mul_(24)


@quantized.fault("quantization", at="model.norm", inputs=_one, reason=WEIGHT_CLIPS)
def last_norm_weight_clipped(pair: Pair) -> None:
    """The range of the last norm's weight is two thirds of the real one."""
    pair.unwrapped().obs_weight._cached_scale.mul_(0.6)
