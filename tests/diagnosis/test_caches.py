"""A cache of keys and values that returns something else is told by layer, keys or values, and tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import qtrace
from qtrace.diagnosis.caches import CacheWatch
from qtrace.engine.events import Bound, Call
from qtrace.report.records import Outcome

LAYER = 1


class ScaledReads(DynamicCache):  # type: ignore[misc]
    """Multiplies what it had stored of one layer's values by 1.1 each time it returns them."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        new = key_states.shape[2]
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == LAYER:
            values = torch.cat([1.1 * values[:, :, :-new], values[:, :, -new:]], 2)
        return keys, values


class LostToken(DynamicCache):  # type: ignore[misc]
    """Stores zeros for the keys of one token of the prompt, which it still returns to the prompt itself."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        is_prompt = self.get_seq_length(layer_idx) == 0
        stored = key_states.clone()
        if is_prompt and layer_idx == LAYER:
            stored[:, :, 3] = 0
        keys, values = super().update(stored, value_states, layer_idx, *args, **kwargs)
        return (key_states if is_prompt else keys), values


class Rounding(DynamicCache):  # type: ignore[misc]
    """Stores values in eight bits, with a scale for each token."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        step = value_states.abs().amax(-1, keepdim=True) / 127
        return super().update(key_states, (value_states / step).round() * step, layer_idx, *args, **kwargs)


class Decoding(nn.Module):
    """Reads a prompt, then one token more, with a cache of some class."""

    def __init__(self, model: nn.Module, cache: type[DynamicCache]) -> None:
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, input_ids: Tensor) -> Tensor:
        past = self.cache()
        self.model(input_ids[:, :-1], past_key_values=past, use_cache=True)
        out: Tensor = self.model(input_ids[:, -1:], past_key_values=past, use_cache=True).logits
        return out


def traced(cache: type[DynamicCache]) -> qtrace.Report:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, vocab_size=97)).eval()
    with torch.no_grad():
        # Freshly made weights hardly attend.
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    pair = Decoding(model, DynamicCache), Decoding(copy.deepcopy(model), cache)
    return qtrace.trace(*pair, torch.randint(0, 97, (2, 10)))


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        (ScaledReads, "returns other values for tokens 0 to 8 of 10: 1.1 times the reference's (update 1, "),
        (LostToken, "returns other keys for token 3 of 10: zero (update 1, "),
    ],
)
def test_a_wrong_cache_is_told_at_the_attention_that_asks_it(cache: type[DynamicCache], said: str) -> None:
    report = traced(cache)
    first = report.findings[0]
    assert first.module == f"model.model.layers.{LAYER}.self_attn"
    assert said in first.summary
    assert "receives the same arguments" not in first.summary


class Patched(DynamicCache):  # type: ignore[misc]
    """Has an update of its own in the instance, as a user's patch."""

    def __init__(self) -> None:
        super().__init__()
        self.update = super().update


def test_an_update_of_the_cache_s_own_is_put_back() -> None:
    cache = Patched()
    own = cache.update
    watches = CacheWatch(), CacheWatch()
    arguments = Bound({"cache": cache}, (), frozenset())
    for watch in watches:
        watch.enter(Call("", "", "", 0, ""), nn.Identity(), arguments)
    # Both sides may be handed one cache: one of them watches it.
    assert cache.update is not own
    for watch in watches:
        watch.end()
    assert cache.update is own


class Slotted:
    """A cache that takes no further attribute."""

    __slots__ = ("keys",)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values

    def get_seq_length(self) -> int:
        return 0


def test_a_cache_with_slots_is_not_watched() -> None:
    watch = CacheWatch()
    watch.enter(Call("", "", "", 0, ""), nn.Identity(), Bound({"cache": Slotted()}, (), frozenset()))
    watch.end()
    assert not watch.updates


def test_a_cache_that_rounds_is_no_fault() -> None:
    report = traced(Rounding)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
