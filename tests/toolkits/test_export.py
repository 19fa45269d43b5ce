"""Candidates that are programs or are compiled: what the report says of them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.engine.model import Model
from tests.helpers.models import Chain

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
PROGRAM = "of the candidate is a program of torch.jit, torch.fx or torch.export and calls no modules"


def programs() -> dict[str, nn.Module]:
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "traced": jit.trace(Chain(), X),
            "scripted": jit.script(nn.Sequential(nn.Linear(8, 8))),
            "exported": torch.export.export(Chain(), (X,)).module(),
        }


@pytest.mark.parametrize("kind", ["traced", "scripted", "exported"])
def test_a_program_is_said_to_call_no_modules(kind: str) -> None:
    found = Model("candidate", programs()[kind]).warnings()
    assert [warning for warning in found if PROGRAM in warning] == [next(w for w in found if w.startswith("<root>"))]
    if kind == "exported":
        assert not any("training mode" in warning for warning in found), "its mode is in its graph"


def test_of_a_program_inside_the_outermost_module_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), programs()["traced"])
    assert next(w for w in Model("candidate", model).warnings() if PROGRAM in w).startswith("1 of the candidate")


def test_a_graph_that_calls_modules_is_no_such_program() -> None:
    graph = torch.fx.symbolic_trace(Chain())
    assert not any(PROGRAM in warning for warning in Model("candidate", graph).warnings())


def test_a_forward_that_was_compiled_by_itself_runs_eagerly_and_says_so() -> None:
    reference = Chain()
    candidate: Any = copy.deepcopy(reference)
    candidate.second.forward = torch.compile(candidate.second.forward, backend="eager")
    report = qtrace.trace(reference, candidate, X)
    assert report.coverage.fraction == 1.0
    assert any("compiled numerics were not measured" in warning for warning in report.warnings)
