"""Breakpoints from Python, and another debugger than pdb."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import pytest
import torch

import qtrace
from qtrace.errors import UsageError
from qtrace.report.records import Outcome
from tests.engine.test_alignment_weights import Bypassing
from tests.helpers.models import Chain, Stack, twin
from tests.helpers.scripted_prompt import INPUTS, Say, masks, say, with_raw_mask

__all__ = ["masks", "say"]


def test_a_breakpoint_that_is_never_reached_is_a_warning_from_python(say: Say) -> None:
    reference = Chain()
    _, report = say((reference, twin(reference)), torch.randn(2, 8), "", at=("unused",))
    assert report.warnings[0].startswith("--break 'unused': the reference never calls unused")


def test_breakpoints_in_python_are_places_and_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Chain()
    with pytest.raises(UsageError, match=r"breakpoints 'frist' matches no module; near: first"):
        qtrace.trace(reference, twin(reference), torch.randn(2, 8), breakpoints=["frist"])
    with pytest.raises(UsageError, match=r"breakpoints 'peir >': at its end: expected a number"):
        qtrace.trace(reference, twin(reference), torch.randn(2, 8), breakpoints=["peir >"])
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    report = qtrace.trace(reference, twin(reference), torch.randn(2, 8), breakpoints=["first:enter", "peir >= 0"])
    assert report.outcome is Outcome.CLEAN
    assert report.warnings == ()


def test_another_debugger_finds_both_sides_by_plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    other = types.ModuleType("another_debugger")
    other.set_trace = lambda: seen.append(dict(sys._getframe(1).f_locals))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another_debugger", other)
    monkeypatch.setenv("PYTHONBREAKPOINT", "another_debugger.set_trace")
    reference = Stack()
    candidate = with_raw_mask(reference)
    report = qtrace.trace(reference, candidate, INPUTS, local=False, breakpoints=["layers.0"])
    assert [set(names) for names in seen] == [{"ref", "cand", "args", "out"}] * 2
    entry, exit_ = seen
    assert entry["ref"].locals["mask"].dtype is torch.float32
    assert entry["cand"].locals["mask"].dtype is torch.int64
    assert [value.dtype for value in entry["args"]["mask"]] == [torch.float32, torch.int64]
    assert entry["out"] == exit_["args"] == {}
    assert [value.shape for value in exit_["out"]["output"]] == [(1, 6, 8)] * 2
    assert report.error is None


def test_quitting_another_debugger_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import bdb

    def leave() -> None:
        raise bdb.BdbQuit

    other = types.ModuleType("another_debugger")
    other.set_trace = leave  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another_debugger", other)
    monkeypatch.setenv("PYTHONBREAKPOINT", "another_debugger.set_trace")
    reference = Chain()
    report = qtrace.trace(reference, twin(reference), torch.randn(2, 8), breakpoints=["second"])
    assert report.error == "ended at the prompt, at second:enter"


def test_a_pair_that_is_aligned_by_what_runs_stops_once(say: Say) -> None:
    reference = Chain()
    candidate = Bypassing(copy.deepcopy(reference)).eval()
    said, report = say((reference, candidate), torch.randn(2, 8), "continue\nquit\n", at=("first:enter#0",))
    assert said.count("is about to run") == 1
    assert report.coverage.fraction == 1
