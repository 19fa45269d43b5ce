"""The score of the fault bench: what counts as right, and what each heuristic names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench.faults import score, tables
from bench.faults.case import Case
from bench.faults.catalogue import cases
from bench.faults.heuristics import HEURISTICS, first_leap, first_over, largest_peir
from bench.faults.score import Result, judge
from qtrace.report.records import Coverage, Finding, Outcome, ReportData, Row, Side, Status

SIDE = Side("", "Model", 0, ("float32",), ("cpu",), False)
CASE = Case(
    id="made/up",
    architecture="made",
    fault="several",
    why="",
    build=lambda: pytest.fail("judging builds nothing"),
    answers=frozenset({"a", "b", "c"}),
    faults=(frozenset({"a", "b"}), frozenset({"c"})),
    kinds=frozenset({"miscalls"}),
    argument="mask",
)


def _row(module: str, order: int, peir: float | None, sample: int = 0) -> Row:
    return Row(
        module=module, call=0, output="", type="T", order=order, status=Status.COMPARED, peir=peir, sample=sample
    )


def _finding(module: str, **more: Any) -> Finding:
    return Finding(**{"rank": 1, "module": module, "call": 0, "kind": "miscalls", "summary": "", **more})


def _report(*findings: Finding, outcome: Outcome = Outcome.FAULT, rows: tuple[Row, ...] = ()) -> ReportData:
    return ReportData(
        qtrace="0",
        created="",
        environment={},
        reference=SIDE,
        candidate=SIDE,
        inputs=(),
        outcome=outcome,
        coverage=Coverage(),
        rows=rows,
        findings=findings,
    )


def test_all_faults_found() -> None:
    result = judge(CASE, _report(_finding("b", argument="mask.0"), _finding("c")), 1.0)
    assert (result.first, result.top, result.found_all, result.kind, result.argument) == (True,) * 5
    assert result.right
    assert result.spurious == 0


@pytest.mark.parametrize(
    ("modules", "first", "top", "found_all", "spurious"),
    [
        ([], False, False, False, 0),
        (["a"], True, True, False, 0),
        (["x", "c", "a"], False, True, True, 1),
        (["x", "y", "z", "a", "c"], False, False, True, 3),
        (["c", "x", "b"], True, True, True, 1),
    ],
)
def test_names_in_another_order(modules: list[str], first: bool, top: bool, found_all: bool, spurious: int) -> None:
    result = judge(CASE, _report(*map(_finding, modules)), 1.0)
    assert (result.first, result.top, result.found_all, result.spurious) == (first, top, found_all, spurious)
    assert result.right == (first and found_all)


def test_members_count_as_found_but_not_as_named_first() -> None:
    result = judge(CASE, _report(_finding("x", members=("a", "c"))), 1.0)
    assert (result.first, result.found_all, result.spurious) == (False, True, 0)


def test_wrong_kind_and_argument() -> None:
    result = judge(CASE, _report(_finding("a", kind="introduces", argument="masks"), _finding("c")), 1.0)
    assert (result.first, result.kind, result.argument) == (True, False, False)


@pytest.mark.parametrize(
    ("findings", "outcome", "right"),
    [
        ([], Outcome.CLEAN, True),
        ([], Outcome.FAULT, False),
        ([], Outcome.DRIFT, False),
        (["a"], Outcome.CLEAN, False),
    ],
)
def test_correct_pair(findings: list[str], outcome: Outcome, right: bool) -> None:
    case = dataclasses.replace(CASE, answers=frozenset(), faults=(), fault="correct", outcomes=frozenset({"clean"}))
    result = judge(case, _report(*map(_finding, findings), outcome=outcome), 1.0)
    assert result.right is right
    assert result.first is None
    (total,) = tables.without_culprit([result])
    assert total["false alarms"] == len(findings)


ROWS = [_row("b", 2, 2e-3), _row("a", 1, 1e-7), _row("c", 3, 0.5), _row("d", 1, 9.0, sample=1), _row("e", 4, None)]


@pytest.mark.parametrize(
    ("rule", "module"), [(largest_peir, "d"), (first_leap, "b"), (first_over, "b")], ids=lambda value: str(value)[:20]
)
def test_heuristics(rule: Any, module: str) -> None:
    assert rule(ROWS) == module


@pytest.mark.parametrize("rule", HEURISTICS.values(), ids=list(HEURISTICS))
def test_heuristics_name_nothing_where_all_agrees(rule: Any) -> None:
    assert rule([_row("a", 1, 0.0), _row("b", 2, None)]) is None
    assert rule([]) is None


def test_heuristics_are_judged_by_the_same_answer() -> None:
    result = judge(CASE, _report(rows=tuple(ROWS)), 1.0)
    assert result.heuristics == {"largest PEIR": False, "first leap x100": True, "first over 1e-3": True}


def test_report_of_a_model_that_raises_is_judged() -> None:
    result = score.run_case(cases("bert/position_table_too_short")[0])
    assert result.error is None
    assert result.outcome is not None


def test_trace_that_fails_counts_against_it() -> None:
    case = dataclasses.replace(cases("llama/identical")[0], call="no_such_method", answers=frozenset({"lm_head"}))
    result = score.run_case(case)
    assert result.error is not None
    assert result.error.startswith("UsageError")
    assert (result.first, result.right) == (False, False)


def test_totals_per_kind() -> None:
    results = [
        Result(id="x", architecture="m", fault="leaf", answers=("a",), first=True, seconds=1.0),
        Result(id="y", architecture="m", fault="leaf", answers=("a",), first=False, seconds=3.0),
        Result(id="z", architecture="m", fault="buffer", answers=("a",), first=True, seconds=2.0),
    ]
    assert [(row["fault"], row["qtrace"]) for row in tables.named_first(results)] == [
        ("leaf", "1/2"),
        ("buffer", "1/1"),
        ("all", "2/3"),
    ]
    assert tables.with_fault(results)[-1]["s"] == 2.0


def test_right_ids_are_stored(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "RIGHT", tmp_path / "right.txt")
    assert score.stored_right() == []
    right = Result(id="x/1", architecture="m", fault="leaf", answers=("a",), first=True, found_all=True)
    score.store_right([right, dataclasses.replace(right, id="x/2", first=False)])
    assert score.stored_right() == ["x/1"]


def test_unknown_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no case of the bench is called \['no/such'\]"):
        score.run(["no/such"])
    with pytest.raises(ValueError, match=r"no case of the bench is called 'no/\*'"):
        cases("no/*")
