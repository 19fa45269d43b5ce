"""`qtrace modules --explain`: the rule of each pair, how sure it is, how alike the weights are, and what was fused."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch import nn

from qtrace.cli.alignment import aligned, alike
from qtrace.cli.listeners import CallCounter
from qtrace.report.coverage import RULES, modules
from qtrace.report.records import Unmatched
from qtrace.report.records.rows import Pairing
from tests.engine.test_alignment_weights import convolutions
from tests.helpers.models import Chain, Wrapped, twin
from tests.report.test_table import WIDTHS, text_of

PAIRINGS = (
    Pairing("model.q", "model.wrapped.q", "stripped", "high", "Linear", "QuantLinear", 1, 1),
    Pairing("model.act", "model.activation", "order", "low", "ReLU", "ReLU", 1, 1),
)
FUSED = (Unmatched("reference", "model.bn", "BatchNorm2d", 2, "fused"),)


def counted(**calls: int) -> CallCounter:
    counter = CallCounter()
    counter.calls = Counter(calls)
    return counter


@pytest.mark.parametrize("width", WIDTHS)
def test_each_pair_shows_its_rule_its_confidence_and_its_weights(width: int) -> None:
    likenesses = {"model.wrapped.q": 0.99951}
    text = text_of(list(modules(PAIRINGS, FUSED, width=width, explain=True, alike=likenesses)), width)
    assert re.search(r"stripped +high +1\.000 +1$", text, re.MULTILINE)
    assert re.search(r"order +low +- +1$", text, re.MULTILINE)
    assert "weights: how alike a pair's are" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= width


def test_without_explain_only_a_low_confidence_is_told() -> None:
    text = text_of(list(modules(PAIRINGS, FUSED, width=120, alike={"model.wrapped.q": 1.0})), 120)
    assert "(low)" in text
    assert "high" not in text
    assert "1.000" not in text


def test_what_was_fused_says_so() -> None:
    text = text_of(list(modules(PAIRINGS, FUSED, width=120)), 120)
    assert "computed by the candidate in one with others:\n    model.bn  BatchNorm2d, 2 calls" in text


def test_every_rule_is_described() -> None:
    rules = ("renamed", "name_attribute", "prefix", "exact", "stripped", "fused", "weights", "enclosing", "order")
    assert sorted(RULES) == sorted(rules)


def test_the_listing_knows_of_fused_modules_what_the_run_calls_without_partner() -> None:
    reference = convolutions()
    candidate = twin(reference)
    torch.ao.quantization.fuse_modules(candidate, [["0", "1", "2"]], inplace=True)  # type: ignore[no-untyped-call]
    calls = counted(**{"": 1, "0": 1, "1": 1, "2": 1, "3": 1})
    noted = [Unmatched("reference", path, "Conv2d", 1, "no_partner") for path in ("0", "1", "2")]
    pairings, unmatched = aligned(reference, candidate, (calls, calls), noted)
    assert {(pair.reference, pair.rule) for pair in pairings} == {("", "exact"), ("2", "fused"), ("3", "exact")}
    left = {one.module: one.reason for one in unmatched if one.side == "reference"}
    assert left == {"0": "fused", "1": "fused"}


def test_weights_are_compared_pair_by_pair() -> None:
    reference = Chain()
    candidate = Wrapped(twin(reference))
    inner = candidate.get_submodule("wrapped.second")
    assert isinstance(inner, nn.Linear)
    with torch.no_grad():
        inner.weight.copy_(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
    counter = counted(first=1, second=1)
    pairings, _ = aligned(reference, candidate, (counter, counter), [])
    found = alike(reference, candidate, pairings)
    assert found["wrapped.first"] == pytest.approx(1.0)
    assert found["wrapped.second"] < 0.8
    assert "wrapped.act" not in found


def test_the_listing_says_of_both_sides_who_computes_several_in_one() -> None:
    torch.manual_seed(0)
    reference = nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 4), "out": nn.Linear(8, 8)})
    candidate = nn.ModuleDict({"qk": nn.Linear(8, 12), "out": twin(reference["out"])})
    with torch.no_grad():
        parts = [reference[name].get_parameter("weight").detach() for name in ("q", "k")]
        candidate["qk"].get_parameter("weight").copy_(torch.cat(parts))
    counters = counted(**{"": 1, "q": 1, "k": 1, "out": 1}), counted(**{"": 1, "qk": 1, "out": 1})
    _, unmatched = aligned(reference, candidate, counters, [])
    assert {one.module: one.reason for one in unmatched} == {"q": "fused", "k": "fused", "qk": "fuses"}
    back, split = aligned(candidate, reference, counters[::-1], [])
    assert [one.reason for one in split if one.side == "reference"] == ["split"]
    assert len(back) == 2
    text = text_of(list(modules((), unmatched, width=120)), 120)
    assert "computing several of the reference's in one:\n    qk  Linear, 1 call" in text


def test_the_listing_shows_the_partners_that_the_run_found() -> None:
    """Weights told the run that two names were swapped: the paths alone would say otherwise again."""
    torch.manual_seed(0)
    reference = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    candidate = nn.ModuleDict({"a": twin(reference["b"]), "b": twin(reference["a"])})
    counters = counted(**{"": 1, "a": 1, "b": 1}), counted(**{"": 1, "a": 1, "b": 1})
    pairings, _ = aligned(reference, candidate, counters, [])
    assert {pair.candidate: pair.reference for pair in pairings if pair.candidate} == {"a": "a", "b": "b"}
    counters[1].keys |= {"a": "b", "b": "a"}
    pairings, _ = aligned(reference, candidate, counters, [])
    assert {pair.candidate: pair.reference for pair in pairings if pair.candidate} == {"a": "b", "b": "a"}
    assert {pair.rule for pair in pairings if pair.candidate} == {"weights"}
