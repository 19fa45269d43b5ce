"""GPT-2: faults in the model as it is, and in candidates that are rebuilt from other modules, as porters do."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.decoding import PROMPT, Decoding, prompt
from bench.faults.reasons import BIAS, BIAS_ZERO, EXACT_GELU, MISSING, ROW_NEGATED, ROW_ZERO, TRANSPOSED, WEIGHT, all_of

suite = Suite("gpt2", models.gpt2, models.padded_uncached)
NORMS = [*(f"transformer.h.{layer}.ln_{norm}" for layer in range(2) for norm in (1, 2)), "transformer.ln_f"]


@suite.fault("leaf", at="transformer.h.0.mlp.act", reason=EXACT_GELU)
def gelu_by_erf(pair: Pair) -> None:
    """The exact GELU runs where the model has the tanh approximation."""
    pair.replace(nn.GELU())


@suite.several(*NORMS)
def eps_of_all_norms(pair: Pair) -> None:
    """Every LayerNorm has eps 1e-3 and not 1e-5: one mistake of a converter, seen in each of them."""
    for path in NORMS:
        pair.at(path).eps = 1e-3


@suite.fault("parameter", at="transformer.h.1.attn.c_proj", reason=all_of(WEIGHT, TRANSPOSED))
def square_weight_transposed(pair: Pair) -> None:
    """The square output projection is stored [out, in], as a linear layer would have it."""
    weight = pair.faulty.weight
    weight.copy_(weight.t().clone())


@suite.fault("parameter", at="transformer.h.0.attn.c_attn", reason=BIAS_ZERO)
def value_bias_lost(pair: Pair) -> None:
    """The last third of a fused bias was never loaded."""
    pair.faulty.bias[128:].zero_()


@suite.several("transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc")
def weights_of_two_layers_exchanged(pair: Pair) -> None:
    """The same weight of two layers changed places: both are wrong."""
    first, second = (pair.at(f"transformer.h.{layer}.mlp").c_fc for layer in range(2))
    first.weight.data, second.weight.data = second.weight.data, first.weight.data


@suite.fault("tie", at="lm_head")
def head_untied_and_random(pair: Pair) -> None:
    """The head does not share the embedding's weight and was never loaded."""
    head = pair.faulty
    generator = torch.Generator().manual_seed(8)
    head.weight = nn.Parameter(0.125 * torch.randn(head.weight.shape, generator=generator))


@suite.fault("container", at="transformer.h.1.attn")
def key_before_query(pair: Pair) -> None:
    """The fused projection is split as key, query, value."""
    pair.rewrite("query_states, key_states, value_states = self", "key_states, query_states, value_states = self")


@suite.fault("container", at="transformer.h.0.attn")
def softmax_over_queries(pair: Pair) -> None:
    """The probabilities of attention sum to one over the queries and not over the keys."""
    pair.rewrite("dim=-1", "dim=-2", within="eager_attention_forward")


@suite.fault("container", at="transformer.h.1.attn")
def head_channels_before_heads(pair: Pair) -> None:
    """Heads are joined channel by channel."""
    pair.rewrite("attn_output.reshape", "attn_output.transpose(-1, -2).reshape")


@suite.fault("container", at="transformer.h.0")
def residual_of_attention_lost(pair: Pair) -> None:
    """The block hands on attention's output without the residual: a wrong input for ln_2, and a wrong sum."""
    pair.rewrite(
        "        # residual connection\n        hidden_states = attn_output + residual\n",
        "        hidden_states = attn_output\n",
    )


@suite.fault("container", at="transformer.h.1", kind=["structure", "miscalls"])
def first_norm_twice(pair: Pair) -> None:
    """The block calls ln_1 where ln_2 belongs: another module in the place of one."""
    pair.rewrite("self.ln_2(hidden_states)", "self.ln_1(hidden_states)")


@suite.fault("container", at="transformer", kind=["structure", "miscalls"])
def first_block_twice(pair: Pair) -> None:
    """The model calls its first block twice."""
    pair.rewrite("for i, block in enumerate(self.h):", "for i, block in enumerate([self.h[0], *self.h]):")


@suite.fault("argument", at="transformer", argument="input")
def positions_count_from_one(pair: Pair) -> None:
    """The model looks up its positions one too far."""
    pair.rewrite("self.wpe(position_ids)", "self.wpe(position_ids + 1)")


@suite.fault("argument", at="transformer", argument="attention_mask")
def padding_lost_by_the_model(pair: Pair) -> None:
    """The model makes its mask without the padding: only tokens of row 1 that see it are wrong."""
    pair.rewrite("            attention_mask=attention_mask,\n", "            attention_mask=None,\n")


@suite.fault("argument", at="", argument="token_type_ids", inputs=models.typed, reason=MISSING)
def token_types_lost(pair: Pair) -> None:
    """The root hands its model None for the token types."""
    pair.rewrite("token_type_ids=token_type_ids", "token_type_ids=None")


@suite.fault("container", at="transformer", inputs=models.typed)
def token_types_subtracted(pair: Pair) -> None:
    """The model subtracts the embeddings of the token types: between its embeddings and its dropout."""
    pair.rewrite("hidden_states + token_type_embeds", "hidden_states - token_type_embeds")


@suite.fault("mode", at="transformer.h.1.mlp.dropout")
def dropout_alive(pair: Pair) -> None:
    """One dropout is in train mode."""
    pair.faulty.train()


@suite.several("transformer.h.0.attn", "transformer.h.1.attn")
def scale_missing_everywhere(pair: Pair) -> None:
    """No attention divides its logits by the root of the head size."""
    for layer in range(2):
        pair.at(f"transformer.h.{layer}.attn").scaling = 1.0


@suite.several("transformer", "transformer.h.1.mlp.c_proj", "lm_head")
def positions_projection_and_head(pair: Pair) -> None:
    """The positions are one off, one projection's bias is lost, and three rows of the untied head are zero."""
    pair.rewrite("self.wpe(position_ids)", "self.wpe(position_ids + 1)", at="transformer")
    head = pair.at("lm_head")
    head.weight = nn.Parameter(head.weight.detach().clone())
    pair.at("transformer.h.1.mlp.c_proj").bias.zero_()
    head.weight[5:8].zero_()


# The answer stands among changes that a replay of single modules on the reference's arguments cannot tell from it.
folded = Suite("compensated", models.gpt2, models.padded_uncached)
BLOCKS = [f"transformer.h.{layer}" for layer in range(2)]
PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def _linear(projection: Any, rows: slice = slice(None)) -> nn.Linear:
    """Return a linear layer for (part of) a projection that is stored as [in, out]."""
    weight = projection.weight.detach()[:, rows].t().contiguous()
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(projection.bias.detach()[rows].clone())
    return linear


def _as_linear_layers(pair: Pair) -> None:
    for block in BLOCKS:
        for name in PROJECTIONS:
            pair.replace(_linear(pair.at(f"{block}.{name}")), at=f"{block}.{name}")


class Split(nn.Module):
    """Three linear layers for one fused projection, joined in the fused order."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = (_linear(fused, slice(64 * i, 64 * i + 64)) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)


class Ported(nn.Module):
    """Holds a module as `.wrapped` and passes everything on by position."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.wrapped = module

    def forward(self, x: Tensor) -> Any:
        return self.wrapped(x)


@suite.correct()
def linear_layers(pair: Pair) -> None:
    """Every projection is a torch linear layer with the transposed weight."""
    _as_linear_layers(pair)


@suite.fault("parameter", at="transformer.h.0.attn.c_proj", reason=all_of(WEIGHT, TRANSPOSED))
def linear_layers_one_not_transposed(pair: Pair) -> None:
    """The same, and the porter forgot to transpose one square weight."""
    _as_linear_layers(pair)
    weight = pair.faulty.weight
    weight.copy_(weight.t().clone())


@suite.correct()
def projections_split(pair: Pair) -> None:
    """The fused projection consists of three linear layers."""
    for block in BLOCKS:
        pair.at(f"{block}.attn").c_attn = Split(pair.at(f"{block}.attn.c_attn"))


@suite.fault("parameter", at="transformer.h.1.attn.c_attn", reason=BIAS_ZERO)
def projections_split_one_bias_lost(pair: Pair) -> None:
    """The same, and the value's bias of one of them was lost: its reference module is the fused projection."""
    projections_split(pair)
    pair.at("transformer.h.1.attn.c_attn.value").bias.zero_()


@suite.correct()
def norms_folded(pair: Pair) -> None:
    """Weights and biases of the norms are folded into the projections that read them."""
    for block in BLOCKS:
        for norm, projection in ((".ln_1", ".attn.c_attn"), (".ln_2", ".mlp.c_fc")):
            gain, shift = pair.at(block + norm).weight, pair.at(block + norm).bias
            target = pair.at(block + projection)
            target.bias.add_(shift @ target.weight)
            target.weight.mul_(gain[:, None])
            gain.fill_(1.0)
            shift.zero_()


@folded.fault("parameter", at=["transformer.h.1.attn.c_attn", "transformer.h.1.ln_1"], reason=BIAS)
def norms_folded_one_shift_forgotten(pair: Pair) -> None:
    """The same, but one norm's bias was dropped without going into the projection: either of the two lacks it."""
    norms_folded(pair)
    pair.at("transformer.h.1.attn.c_attn").bias.copy_(pair.reference.transformer.h[1].attn.c_attn.bias)


@suite.correct()
def scale_folded_into_queries(pair: Pair) -> None:
    """1 / sqrt(head size) is in the first third of the fused projection, and attention does not scale."""
    for block in BLOCKS:
        fused = pair.at(f"{block}.attn.c_attn")
        fused.weight[:, :64].mul_(0.25)
        fused.bias[:64].mul_(0.25)
        pair.at(f"{block}.attn").scaling = 1.0


@folded.fault("container", at=["transformer.h.0.attn", "transformer.h.0.attn.c_attn"], kind="introduces")
def scale_folded_and_kept(pair: Pair) -> None:
    """The scale is in the weights, and one attention still scales: undone in neither, so both places describe it."""
    scale_folded_into_queries(pair)
    pair.at("transformer.h.0.attn").scaling = 0.25


@suite.correct()
def fused_attention(pair: Pair) -> None:
    """The candidate uses torch's scaled_dot_product_attention."""
    pair.candidate.set_attn_implementation("sdpa")


@suite.correct()
def everything_wrapped(pair: Pair) -> None:
    """Every projection, norm and activation is inside a wrapper."""
    _wrap(pair)


@suite.fault("parameter", at="transformer.h.1.mlp.c_fc", reason=ROW_NEGATED)
def everything_wrapped_one_row_flipped(pair: Pair) -> None:
    """The same, and one channel of a wrapped projection has the opposite sign."""
    _wrap(pair)
    pair.at("transformer.h.1.mlp.c_fc.wrapped").weight[:, 7].neg_()


@suite.fault("container", at="transformer.h.0.attn")
def everything_wrapped_heads_reversed(pair: Pair) -> None:
    """The same, and one attention joins its heads in reverse."""
    _wrap(pair)
    pair.rewrite("attn_output.reshape", "attn_output.flip(-2).reshape")


def _wrap(pair: Pair) -> None:
    for block in BLOCKS:
        for name in (*PROJECTIONS, "ln_1", "ln_2", "mlp.act"):
            pair.replace(Ported(pair.at(f"{block}.{name}")), at=f"{block}.{name}")


@functools.cache
def _decoding() -> nn.Module:
    return Decoding(models.gpt2()).eval()


decoding = Suite("gpt2_decoding", _decoding, prompt)


@decoding.fault("argument", at="model.transformer", argument="input")
def positions_wrong_in_one_step(pair: Pair) -> None:
    """The model counts one too far in its second step of decoding, and in no other."""
    pair.rewrite(
        "device=inputs_embeds.device) + past_seen_tokens",
        f"device=inputs_embeds.device) + past_seen_tokens + (past_seen_tokens == {PROMPT + 1})",
    )


@decoding.fault("container", at="model.transformer.h.1.attn", kind="raises", reason=r"\blayer_idx\b")
def cache_of_another_layer(pair: Pair) -> None:
    """One attention stores its keys under the number of the layer before it, and reads twice too many of them."""
    pair.faulty.layer_idx = 0


@decoding.fault("container", at="model.transformer.h.0.attn")
def oldest_key_forgotten(pair: Pair) -> None:
    """From the third call on, one attention zeroes the oldest value that the cache returns."""
    pair.rewrite(
        "key_states, value_states = curr_past_key_values.update(key_states, value_states, self.layer_idx)",
        "key_states, value_states = curr_past_key_values.update(key_states, value_states, self.layer_idx)\n"
        f"            if value_states.shape[2] > {PROMPT + 1}:\n"
        "                value_states = torch.nn.functional.pad(value_states[:, :, 1:], (0, 0, 1, 0))",
    )


@decoding.fault("parameter", at="model.transformer.wpe", reason=ROW_ZERO)
def late_positions_never_loaded(pair: Pair) -> None:
    """The rows of the position table beyond 10 are zero, so only the last steps are wrong."""
    pair.faulty.weight[10:].zero_()


@decoding.correct("clean", "inconclusive")
def without_a_cache(pair: Pair) -> Pair:
    """The candidate reads the whole text in each step; inside, nothing has the reference's shapes."""
    return Pair(pair.reference, Recomputing(pair.candidate.model).eval(), pair.inputs)


@decoding.correct()
def static_cache(pair: Pair) -> Pair:
    """The candidate's cache has its full length from the start."""
    return Pair(pair.reference, Preallocated(pair.candidate.model).eval(), pair.inputs)


class Recomputing(Decoding):
    """Decodes without a cache."""

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        ends = range(PROMPT, input_ids.shape[1] + 1)
        logits = [self.model(input_ids=input_ids[:, :end], use_cache=False).logits for end in ends]
        return [logits[0], *(step[:, -1:] for step in logits[1:])]


class Preallocated(Decoding):
    """Decodes with a cache of fixed size."""

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        config: Any = self.model.config
        cache = transformers.StaticCache(config=config, max_cache_len=input_ids.shape[1] + 4)
        ends = range(PROMPT, input_ids.shape[1] + 1)
        starts = [0, *ends]
        return [
            self.model(input_ids=input_ids[:, start:end], past_key_values=cache).logits
            for start, end in zip(starts, ends, strict=False)
        ]
