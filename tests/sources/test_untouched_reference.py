"""Making a candidate must leave the reference and the process as they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from qtrace.config import RunConfig
from qtrace.errors import SourceError, UsageError
from qtrace.sources.pair import Pair, load_pair

Load = Callable[[str], Pair]

# Made as a user's file would make it: the reference is kept in a global, and a candidate finds it there.
CODE = """
import copy, os, torch
from torch import nn
kept = []
def reference():
    torch.manual_seed(0)
    kept.append(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval())
    return kept[-1]
def batch():
    return torch.ones(2, 4)
def rounded():
    with torch.no_grad():
        kept[-1][0].weight.copy_(kept[-1][0].weight.round())
    return copy.deepcopy(kept[-1])
def replaced():
    kept[-1][0].weight.data = kept[-1][0].weight.data.round()
    return copy.deepcopy(kept[-1])
def exchanged():
    kept[-1][0] = nn.Linear(4, 4)
    return copy.deepcopy(kept[-1])
def hooked():
    kept[-1][1].register_forward_hook(lambda module, args, output: output.round())
    return copy.deepcopy(kept[-1])
def itself():
    return kept[-1]
def shared():
    return nn.Sequential(*kept[-1]).eval()
def careless(reference):
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    os.chdir("/")
    return reference
def renamed(model):
    return model
def empty(reference):
    return reference.to("meta")
def program(reference):
    return torch.export.export(reference, (torch.ones(2, 4),))
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    (tmp_path / "models.py").write_text(CODE)

    def loaded(candidate: str) -> Pair:
        place = tmp_path / "models.py"
        sections = {"reference": "reference", "candidate": candidate, "inputs": "batch"}
        config = {key: {"source": f"{place}:{name}"} for key, name in sections.items()}
        return load_pair(RunConfig.model_validate(config))

    return loaded


@pytest.mark.parametrize(
    ("candidate", "changed"), [("rounded", "0.weight"), ("replaced", "0.weight"), ("exchanged", "0"), ("hooked", "1")]
)
def test_a_candidate_that_changes_the_reference_is_refused(load: Load, candidate: str, changed: str) -> None:
    with pytest.raises(SourceError) as caught:
        load(candidate)
    said = str(caught.value)
    assert f"models.py:{candidate} changed the reference itself ({changed}" in said
    assert said.endswith("give it a parameter reference, and it gets a copy")


def test_the_reference_itself_is_no_candidate(load: Load) -> None:
    with pytest.raises(SourceError, match=r"models\.py:itself returned the reference itself, which would be compared"):
        load("itself")


def test_sharing_modules_with_the_reference_changes_nothing(load: Load) -> None:
    pair = load("shared")
    assert pair.candidate.get_submodule("0") is pair.reference.get_submodule("0")


def test_what_holds_for_the_whole_process_is_put_back(load: Load) -> None:
    folder = os.getcwd()
    load("careless")
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.getcwd() == folder


def test_a_parameter_of_another_name_is_told_what_it_should_be_called(load: Load) -> None:
    with pytest.raises(UsageError, match="needs the parameter model; if that is the model to wrap, call it reference"):
        load("renamed")


def test_an_exported_program_is_taken_for_its_modules(load: Load) -> None:
    pair = load("program")
    assert [path for path, _ in pair.candidate.named_modules()] == ["", "0", "1"]
    assert not pair.candidate.training
    assert isinstance(pair.candidate, nn.Module)


def test_a_model_without_values_is_refused(load: Load) -> None:
    with pytest.raises(SourceError, match="returned a model on the meta device, which has no values"):
        load("empty")
