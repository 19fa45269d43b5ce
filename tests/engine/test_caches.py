"""A cache that a model returns is its own affair: another convention is no difference in it, other values are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import qtrace
from qtrace.engine.samples import as_samples
from qtrace.report.records import Outcome, Verdict
from qtrace.sources.wrappers import apply_wrapper
from qtrace.zoo import llama


@pytest.fixture
def pair() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    reference = llama.tiny()
    return reference, copy.deepcopy(reference), {"input_ids": torch.arange(3, 15)[None]}


def heads(model: Any) -> tuple[int, int, int]:
    """Return the numbers of query heads and key heads, and the channels of each."""
    config = model.config
    return config.num_attention_heads, config.num_key_value_heads, config.head_dim


@torch.no_grad()
def test_a_scale_between_queries_and_keys_is_no_difference(pair: Any) -> None:
    reference, candidate, inputs = pair
    attention = candidate.model.layers[0].self_attn
    attention.k_proj.weight.mul_(4.0)
    attention.q_proj.weight.div_(4.0)
    report = qtrace.trace(reference, candidate, inputs)
    assert (report.outcome, report.findings) == (Outcome.CLEAN, ())
    assert any("past_key_values" in warning and "another convention" in warning for warning in report.warnings)


@torch.no_grad()
def test_values_turned_within_each_head_are_no_difference(pair: Any) -> None:
    reference, candidate, inputs = pair
    queries, keys, width = heads(candidate)
    generator = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(keys)]
    attention = candidate.model.layers[1].self_attn
    for head, turn in enumerate(turns):
        rows = attention.v_proj.weight[head * width : (head + 1) * width]
        rows.copy_(turn @ rows)
    for head in range(queries):
        turn = turns[head * keys // queries]
        columns = attention.o_proj.weight[:, head * width : (head + 1) * width]
        columns.copy_(columns @ turn.T)
    report = qtrace.trace(reference, candidate, inputs)
    assert (report.outcome, report.findings) == (Outcome.CLEAN, ())


@torch.no_grad()
def test_other_values_in_a_cache_are_a_difference(pair: Any) -> None:
    reference, candidate, inputs = pair
    candidate.model.layers[0].self_attn.v_proj.weight[3].neg_()
    report = qtrace.trace(reference, candidate, inputs)
    assert report.findings[0].module == "model.layers.0.self_attn.v_proj"


@torch.no_grad()
def test_a_method_is_judged_by_what_it_returns(pair: Any) -> None:
    reference, candidate, inputs = pair
    attention = candidate.model.layers[0].self_attn
    attention.v_proj.weight.mul_(4.0)
    attention.o_proj.weight.div_(4.0)
    report = qtrace.trace(reference, candidate, {**inputs, "max_new_tokens": 3, "do_sample": False}, call="generate")
    assert (report.outcome, report.findings) == (Outcome.CLEAN, ())


def test_a_scale_in_the_cache_is_no_difference_under_quantization() -> None:
    pytest.importorskip("tico")
    reference = llama.tiny()
    inputs = llama.tokens()
    candidate = apply_wrapper("tico", reference, as_samples(inputs), {"quantize": True})
    report = qtrace.trace(reference, candidate, inputs)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
    keys = report.row("", output="past_key_values.layers.1.keys")
    assert keys.verdict is Verdict.ABSORBED
    assert keys.relation is not None
    assert keys.relation.parameters["factor"] == pytest.approx(0.25, abs=0.01)
    assert report.row("", output="past_key_values.layers.1.values").verdict is Verdict.INTRODUCED
