"""The bench of toolkits: its check finds a wrong pair, and its page says what ran, what was left and refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import qtrace
from bench.toolkits.check import check
from bench.toolkits.environments import PACKAGES
from bench.toolkits.page import page
from bench.toolkits.subjects import SUBJECTS, convnet
from bench.toolkits.ways import WAYS, Way
from qtrace.records.calls import Pairing
from qtrace.sources.wrappers import BUILT_IN
from tests.models import Stack


def paired(*paths: str) -> list[Pairing]:
    names = [path.split("=") for path in paths]
    return [Pairing(reference, candidate, "order") for reference, candidate in names]


def test_a_wrong_pair_shows_in_its_weights_and_one_without_weights_in_its_error() -> None:
    reference, (_, inputs) = convnet(), SUBJECTS["convnet"]
    report = qtrace.trace(reference, copy.deepcopy(reference), inputs(), local=True)
    right = paired("features.0=features.0", "pool=pool", "fc=fc")
    found = check(reference, reference, right, report)
    assert (found.by_weights, found.by_error, found.unknown, found.wrong) == (2, 1, 0, ())
    stack = Stack()
    exchanged = paired("layers.0.query=layers.0.value", "layers.0.value=layers.0.value")
    report = qtrace.trace(stack, copy.deepcopy(stack), {"ids": torch.arange(4)[None]}, local=True)
    assert check(stack, stack, exchanged, report).wrong == ("layers.0.query",)


def test_what_nothing_tells_is_not_called_right() -> None:
    reference, (_, inputs) = convnet(), SUBJECTS["convnet"]
    report = qtrace.trace(reference, copy.deepcopy(reference), inputs(), local=False)
    assert check(reference, reference, paired("pool=pool"), report).unknown == 1


def row(way: str, model: str, **more: Any) -> dict[str, Any]:
    checked = {"by_weights": 5, "by_error": 3, "unknown": 1, "wrong": []}
    ran = {
        "outcome": "drift",
        "calls": 9,
        "aligned": 9,
        "compared": 8,
        "rules": ["exact"],
        "left": {},
        "checked": checked,
    }
    return {"way": way, "model": model, "wrap_s": 0.1, "trace_s": 1.0, "local": {}, "final_peir": 0.1, **ran, **more}


def test_the_page_names_what_was_left_refused_and_not_run() -> None:
    ways = [Way("A", "dtype"), Way("B", "peft"), Way("C", "nncf")]
    rows = [
        row("A", "convnet", aligned=7, left={"features.0": "fused", "features.1": "fused"}),
        {"way": "B", "model": "llama", "refused": "the wrapper peft failed on Llama"},
    ]
    text = page({"torch": "2"}, ways, rows, [ways[2]])
    assert "| A |  |  |  | 7/9<br>compared 8 |  | 0 of 8 (1 not told) | exact | 1 drift |" in text
    assert "- A, convnet: `features.0`, `features.1`: computed in one with others" in text
    assert "- B, llama: the wrapper peft failed on Llama" in text
    assert "There is no environment for: C." in text


def test_three_toolkits_are_ranked_by_the_largest_error_that_they_introduce() -> None:
    ways = ("torchao int8 dynamic", "optimum-quanto int8 weights", "bitsandbytes 8 bits")
    errors = ({"q": 0.1, "k": 0.2}, {"q": 0.5, "k": 0.1}, {"q": 0.1, "k": 0.1})
    rows = [row(way, "smollm2", local=local) for way, local in zip(ways, errors, strict=True)]
    text = page({}, [Way(way, "dtype") for way in ways], rows, [])
    assert text.index("| `q` | 1.00e-01 | 5.00e-01 | 1.00e-01 |") < text.index("| `k` | 2.00e-01")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_names_a_wrapper_models_and_an_environment(way: Way) -> None:
    assert way.wrapper in BUILT_IN
    assert set(way.models) <= set(SUBJECTS)
    assert way.environment in ("", "aimet", *PACKAGES)
