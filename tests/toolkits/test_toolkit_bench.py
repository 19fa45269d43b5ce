"""The bench of toolkits: its check finds a wrong pair, and its page says what ran, what was left and refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from bench.toolkits.case import apart
from bench.toolkits.check import check
from bench.toolkits.environments import PACKAGES
from bench.toolkits.page import page
from bench.toolkits.subjects import SUBJECTS, convnet
from bench.toolkits.ways import WAYS, Way
from qtrace.report.records.rows import Pairing
from qtrace.toolkits import TOOLKITS
from tests.helpers.models import Stack


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
        "apart": {},
        "findings": [],
        "checked": checked,
    }
    return {"way": way, "model": model, "wrap_s": 0.1, "trace_s": 1.0, "local": {}, "final_peir": 0.1, **ran, **more}


def test_the_page_names_what_was_left_refused_and_not_run() -> None:
    ways = [Way("A", "dtype"), Way("B", "peft"), Way("C", "nncf")]
    left, apart = {"features.0": "fused", "features.1": "fused"}, {"pool": "shape_mismatch"}
    rows = [
        row("A", "convnet", aligned=7, left=left, apart=apart),
        {"way": "B", "model": "llama", "refused": "the wrapper peft failed on Llama"},
    ]
    text = page({"torch": "2"}, ways, rows, [ways[2]])
    assert "| A |  |  |  | 7/9<br>compared 8 |  |  |  | 0 of 8 |" in text
    assert "| A | 1 drift | exact | 1 |" in text
    assert "- A, convnet: `features.0`, `features.1`: computed by the candidate in one with others" in text
    assert "- A, convnet: `pool`: with outputs of other shapes" in text
    assert "- B, llama: the wrapper peft failed on Llama" in text
    assert "There is no environment for: C." in text


def test_the_page_lists_what_runs_named_as_faults_and_no_other_findings() -> None:
    findings = ["miscalls fc", *(f"introduces features.{n}" for n in range(11))]
    rows = [row("A", "convnet", outcome="fault", findings=findings), row("A", "llama", findings=["introduces q"])]
    text = page({}, [Way("A", "dtype")], rows, [])
    listed = text.split("## Named as faults\n\n")[1].split("\n\n")[0]
    assert listed.startswith("- A, convnet: miscalls `fc`, introduces `features.0`, ")
    assert listed.endswith("introduces `features.8` and 2 more")
    assert "\n" not in listed


def test_the_page_says_which_versions_ran_where_they_are_not_the_head_lines() -> None:
    about = {"torch": "2", "transformers": "5.22.2"}
    ways = [Way("A", "dtype"), Way("A2", "tico"), Way("B", "llmcompressor", environment="llmcompressor")]
    ways += [Way("C", "aimet", environment="aimet")]
    rows = [
        row("A", "llama", versions={"transformers": "5.22.2"}),
        row("A2", "llama", versions={"tico": "0.3.0", "transformers": "5.22.2"}),
        row("B", "llama", versions={"llmcompressor": "0.14", "transformers": "5.17.0"}),
        row("C", "llama", versions={"aimet-torch": "2.42", "transformers": "5.22.2"}),
    ]
    text = page(about, ways, rows, [])
    listed = text.split("## Environments\n\n")[1].split("\n\n")[0].splitlines()
    assert listed[:2] == [
        "- the project's own: tico 0.3.0",
        "- llmcompressor: llmcompressor 0.14, transformers 5.17.0",
    ]
    assert listed[2].startswith("- aimet: aimet-torch 2.42; its torchvision, which is built for CUDA, is imported with")


def test_what_is_aligned_and_of_another_shape_is_apart_unless_something_of_it_was_compared() -> None:
    class Rows(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.inner, self.outer = nn.Identity(), nn.Linear(4, 4)
            self.rows = rows

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.inner(x[: self.rows])
            out: torch.Tensor = self.outer(x)
            return out

    reference, candidate = Rows(2), Rows(3)
    candidate.load_state_dict(reference.state_dict())
    report = qtrace.trace(reference, candidate, torch.ones(4, 4), local=False)
    assert apart(report, {"inner", "outer"}) == {"inner": "shape_mismatch"}
    assert apart(report, {"outer"}) == {}


def test_torchvisions_operators_are_declared_when_it_is_looked_for_and_not_defined() -> None:
    script = """
import bench.toolkits.torchvision_ops, importlib.util, sys
assert "torch" not in sys.modules
importlib.util.find_spec("torchvision")
import torch
for name in ("nms", "qnms"):
    try:
        getattr(torch.ops.torchvision, name)(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except NotImplementedError:
        print(name)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["nms", "qnms"]


def test_three_toolkits_are_ranked_by_the_largest_error_that_they_introduce() -> None:
    ways = ("torchao int8 dynamic", "optimum-quanto int8 weights", "bitsandbytes 8 bits")
    errors = ({"q": 0.1, "k": 0.2}, {"q": 0.5, "k": 0.1}, {"q": 0.1, "k": 0.1})
    rows = [row(way, "smollm2", local=local) for way, local in zip(ways, errors, strict=True)]
    text = page({}, [Way(way, "dtype") for way in ways], rows, [])
    assert text.index("| `q` | 1.00e-01 | 5.00e-01 | 1.00e-01 |") < text.index("| `k` | 2.00e-01")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_names_a_wrapper_models_and_an_environment(way: Way) -> None:
    assert way.wrapper in TOOLKITS
    assert set(way.models) <= set(SUBJECTS)
    assert way.environment in ("", *PACKAGES)
    assert set(way.own) <= set(SUBJECTS)
