"""Decoding with a cache: a prompt, then one token after the other. The faults show from the second call on."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from bench.faults import models
from bench.faults.case import Pair, Suite
from bench.faults.reasons import PART, TWICE, WEIGHT, all_of

PROMPT = 8


class Decoding(nn.Module):
    """Feeds given tokens to a language model, a prompt and then one by one, and returns the logits of every call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        step = self.model(input_ids=input_ids[:, :PROMPT], use_cache=True)
        logits = [step.logits]
        for place in range(PROMPT, input_ids.shape[1]):
            step = self.model(input_ids=input_ids[:, place : place + 1], past_key_values=step.past_key_values)
            logits.append(step.logits)
        return logits


@functools.cache
def decoding() -> nn.Module:
    """Return a Llama that decodes given tokens."""
    return Decoding(models.llama()).eval()


def prompt() -> Any:
    """Return 12 tokens: a call with 8 and 4 calls with one each."""
    return models.tokens(length=PROMPT + 4, batch=1)["input_ids"]


def greedy() -> dict[str, Any]:
    """Return a prompt for greedy generation of 5 tokens."""
    return {**models.tokens(length=PROMPT, batch=1), "max_new_tokens": 5, "do_sample": False}


suite = Suite("decoding", decoding, prompt)
generation = Suite("generation", models.llama, greedy)


@suite.fault("argument", at="model.model", argument="position_ids")
def positions_start_anew(pair: Pair) -> None:
    """The model forgets how many tokens are cached when it counts positions: the prompt's call is exact."""
    pair.rewrite(
        "torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_seen_tokens",
        "torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)",
    )


@suite.fault("argument", at="model.model", argument="position_ids")
def positions_one_off(pair: Pair) -> None:
    """While decoding, positions are one too high."""
    pair.rewrite("+ past_seen_tokens", "+ past_seen_tokens + (past_seen_tokens > 0)")


@suite.fault("container", at="model.model.layers.1.self_attn")
def cached_keys_ignored(pair: Pair) -> None:
    """One attention lets the token that it decodes see itself alone: it does not use what the cache returns."""
    pair.rewrite(
        "key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)",
        "past_key_values.update(key_states, value_states, self.layer_idx)\n"
        "            attention_mask = None if key_states.shape[2] == 1 else attention_mask",
    )


@suite.fault("container", at="model.model.layers.0.self_attn")
def cache_rounded(pair: Pair) -> None:
    """One attention stores its values in 8 bits: what the prompt's own call returns is exact."""
    pair.rewrite(
        "key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)",
        "exact = value_states\n"
        "            step = exact.abs().amax() / 16\n"
        "            stored = (exact / step).round() * step\n"
        "            key_states, value_states = past_key_values.update(key_states, stored, self.layer_idx)\n"
        "            value_states = exact if value_states.shape == exact.shape else value_states",
    )


@generation.fault("argument", at="", argument="position_ids", call="generate")
def positions_one_off_in_generate(pair: Pair) -> None:
    """Called through `generate`, the root hands its model positions that are one too high while decoding."""
    pair.rewrite("position_ids=position_ids", "position_ids=position_ids + (position_ids.shape[1] == 1)")


@generation.fault("parameter", at="lm_head", call="generate", reason=all_of(WEIGHT, PART, TWICE))
def head_rows_stale_in_generate(pair: Pair) -> None:
    """Called through `generate`, a part of the head's rows is too large, so that other tokens are chosen."""
    pair.faulty.weight[40:60].mul_(2)
