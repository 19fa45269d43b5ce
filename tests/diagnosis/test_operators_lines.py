"""Faults put into the source of real models: the diagnosis names the line that was changed."""

from __future__ import annotations

import copy
import difflib
import linecache
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import qtrace
from bench.faults import models
from bench.faults.case import Case
from bench.faults.catalogue import cases
from qtrace.diagnosis.naming import Naming
from qtrace.report.records import Finding

# Modules whose own code is changed, and the sides on which an operator stands in a changed line.
CASES = {
    "llama/residual_dropped": {"reference"},
    "llama/residual_added_twice": {"reference", "candidate"},
    "llama/norms_swapped": {"reference", "candidate"},
    "llama/heads_left_untransposed": {"reference"},
    "llama/value_heads_tiled": {"candidate"},
    "llama/key_rotation_missing": {"reference"},
    "vit/class_token_at_the_end": {"reference", "candidate"},
    "gpt2/first_norm_twice": {"reference", "candidate"},
    "gpt_neox/fused_projection_by_kind": {"reference", "candidate"},
    "assembled/mean_over_padding": {"reference", "candidate"},
    "recurrent/frames_stacked_backwards": {"reference", "candidate"},
    "llama/norm_centred": {"candidate"},
    "mixtral/routing_weights_not_normalised": {"reference"},
    "mlp_mixer/log_of_another_base": {"reference", "candidate"},
}


def first(case: Case) -> tuple[Finding, Any]:
    pair = case.build()
    return qtrace.trace(pair.reference, pair.candidate, pair.inputs, call=case.call).findings[0], pair


def changed(pair: Any) -> dict[str, set[int]]:
    """Return the lines of each side's source that the fault changed."""
    found: dict[str, set[int]] = {"reference": set(), "candidate": set()}
    for module in pair.candidate.modules():
        file = type(module).forward.__code__.co_filename
        if not file.startswith("<"):
            continue
        home = sys.modules[type(module).__module__].__file__
        assert home is not None
        before, after = linecache.getlines(home), linecache.getlines(file)
        for tag, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if tag != "equal":
                found["reference"].update(range(i + 1, j + 1))
                found["candidate"].update(range(k + 1, m + 1))
    return found


def lines(finding: Finding) -> Iterator[tuple[str, int]]:
    for side, place in (finding.source or {}).items():
        if place is not None:
            yield side, place["line"]


@pytest.mark.parametrize("name", CASES)
def test_the_changed_line_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = cases(name)
    finding, pair = first(case)
    wrong = changed(pair)
    named = {side for side, line in lines(finding) if line in wrong[side]}
    assert named == CASES[name]
    # What the calls around it tell must not have been right before where it is wrong now.
    monkeypatch.setattr(Naming, "_parting", lambda *_: (None, None))
    coarse, pair = first(case)
    assert {side for side, line in lines(coarse) if line in changed(pair)[side]} <= named


def test_a_leaf_whose_data_differ_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from qtrace.diagnosis import runner

    def never(*_: Any) -> None:
        raise AssertionError("what its weights explain needs no line")

    monkeypatch.setattr(runner, "pinpoint", never)
    reference = models.llama()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.get_parameter("model.layers.1.input_layernorm.weight")[3] *= -1
    finding = qtrace.trace(reference, candidate, models.tokens()).findings[0]
    assert finding.module == "model.layers.1.input_layernorm"
