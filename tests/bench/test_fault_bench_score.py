"""The score of the fault bench: what counts as right, and what each heuristic names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench.faults import score, tables
from bench.faults.case import Case
from bench.faults.catalogue import cases
from bench.faults.claims import overclaims
from bench.faults.heuristics import HEURISTICS, first_leap, first_over, largest_peir
from bench.faults.reasons import USUAL_REASONS, all_of, times
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


def _report(
    *findings: Finding,
    outcome: Outcome = Outcome.FAULT,
    rows: tuple[Row, ...] = (),
    static: tuple[str, ...] = (),
) -> ReportData:
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
        static=static,
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


EPS = dataclasses.replace(CASE, reason=r"\beps\b")


@pytest.mark.parametrize(
    "finding",
    [
        _finding("a", summary="Its EPS differs"),
        _finding("a", argument="eps"),
        _finding("a", callee="norm.eps"),
        _finding("a", callees=("norm", "eps")),
        _finding("a", evidence=("something else", "eps 1e-5 against 1e-6")),
    ],
    ids=lambda finding: f"{finding.argument} {finding.callee} {finding.callees} {finding.evidence}"[:40],
)
def test_reason_is_told_in_any_field(finding: Finding) -> None:
    assert judge(EPS, _report(finding), 1.0).reason is True


def test_reason_is_told_by_another_finding_that_is_at_the_fault() -> None:
    assert judge(EPS, _report(_finding("a"), _finding("c", summary="eps")), 1.0).reason is True
    assert judge(EPS, _report(_finding("a"), _finding("x", members=("b",), summary="eps")), 1.0).reason is True


def test_reason_is_told_by_a_static_difference() -> None:
    assert judge(EPS, _report(_finding("a"), static=("a: eps differs",)), 1.0).reason is True


@pytest.mark.parametrize(
    "findings",
    [
        [_finding("a", summary="its steps differ")],
        [_finding("a"), _finding("x", summary="eps")],
        [_finding("a", evidence=("it quantizes with eps",))],
        [_finding("a", summary="see eps.py:12 and models/eps.py")],
        [_finding("a", source={"reference": {"file": "eps"}})],
    ],
    ids=["another word", "elsewhere", "how it quantizes", "file name", "source"],
)
def test_reason_is_untold(findings: list[Finding]) -> None:
    assert judge(EPS, _report(*findings), 1.0).reason is False


def test_reason_is_not_judged_where_none_is_demanded_or_the_first_is_wrong() -> None:
    assert judge(CASE, _report(_finding("a", summary="eps")), 1.0).reason is None
    assert judge(EPS, _report(_finding("x"), _finding("a", summary="eps")), 1.0).reason is None
    assert judge(EPS, _report(), 1.0).reason is None
    correct = dataclasses.replace(CASE, answers=frozenset(), faults=())
    assert judge(correct, _report(_finding("a", summary="eps")), 1.0).reason is None


def test_all_parts_of_a_reason_are_needed_in_any_order() -> None:
    case = dataclasses.replace(CASE, reason=all_of(r"\bweight\b", r"\brow", "opposite sign|negat"))
    told = _finding("a", summary="Row 17 has the opposite sign", evidence=("it is the weight",))
    assert judge(case, _report(told), 1.0).reason is True
    assert judge(case, _report(dataclasses.replace(told, evidence=("it is the bias",))), 1.0).reason is False


def test_a_factor_is_told_by_its_value() -> None:
    case = dataclasses.replace(CASE, reason=times("1.5"))
    for words, told in (
        ("1.5 times", True),
        ("1.50 x", True),
        ("by a factor", True),
        ("1.5e-3", False),
        ("1.52", False),
    ):
        assert judge(case, _report(_finding("a", summary=words)), 1.0).reason is told


def test_a_kind_of_fault_has_its_usual_reason() -> None:
    bench = {case.id: case.reason for case in cases("bert/*")}
    assert bench["bert/dropout_alive"] == USUAL_REASONS["mode"]
    assert bench["bert/residual_dropped"] == ""


INF = float("inf")
NAN = float("nan")


def _graft(before: float | None, after: float | None) -> dict[str, Any]:
    return {"before": before, "after": after}


@pytest.mark.parametrize("strength", ["confirmed", "in part"])
@pytest.mark.parametrize(
    ("graft", "too_much"),
    [
        (_graft(1.0, 0.0), False),
        (_graft(1.0, 0.9), False),
        (_graft(1.0, 0.91), True),
        (_graft(1.0, 2.0), True),
        (_graft(INF, 5.0), False),
        (_graft(INF, INF), True),
        (_graft(1.0, INF), True),
        (_graft(INF, None), True),
        (_graft(1.0, None), True),
        (_graft(None, 0.0), True),
        (_graft(None, None), True),
        (_graft(NAN, 0.0), True),
        (_graft(1.0, NAN), True),
        ({}, True),
        (None, True),
    ],
)
def test_what_is_confirmed_must_have_improved(strength: str, graft: Any, too_much: bool) -> None:
    finding = _finding("a", strength=strength, confirmed=strength == "confirmed", graft=graft)
    assert overclaims(finding) is too_much


@pytest.mark.parametrize(
    ("kind", "strength", "too_much"),
    [
        ("raises", "confirmed", False),
        ("raises", "in part", True),
        ("raises", "not confirmed", False),
        ("structure", "confirmed", True),
        ("structure", "in part", True),
        ("structure", "not confirmed", False),
    ],
)
def test_only_what_raises_is_confirmed_without_a_graft(kind: str, strength: str, too_much: bool) -> None:
    finding = _finding("a", kind=kind, strength=strength, confirmed=strength == "confirmed")
    assert overclaims(finding) is too_much


@pytest.mark.parametrize("graft", [None, _graft(1.0, 0.0), _graft(1.0, 1.0), _graft(None, INF)])
def test_what_is_not_confirmed_claims_nothing(graft: Any) -> None:
    assert overclaims(_finding("a", strength="not confirmed", graft=graft)) is False


@pytest.mark.parametrize(
    ("confirmed", "strength"), [(True, "in part"), (True, "not confirmed"), (False, "confirmed"), (False, "surely")]
)
def test_both_words_for_the_strength_must_agree(confirmed: bool, strength: str) -> None:
    assert overclaims(_finding("a", confirmed=confirmed, strength=strength, graft=_graft(1.0, 0.0))) is True


def test_overclaims_are_counted_in_every_finding() -> None:
    findings = [_finding("a", strength="in part"), _finding("x", confirmed=True), _finding("c")]
    assert judge(CASE, _report(*findings), 1.0).overclaims == 2
    correct = dataclasses.replace(CASE, answers=frozenset(), faults=())
    assert judge(correct, _report(*findings), 1.0).overclaims == 2


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
        Result(id="x", architecture="m", fault="leaf", answers=("a",), first=True, reason=True, seconds=1.0),
        Result(id="y", architecture="m", fault="leaf", answers=("a",), first=False, seconds=3.0),
        Result(id="z", architecture="m", fault="buffer", answers=("a",), first=True, reason=False, seconds=2.0),
        Result(id="w", architecture="m", fault="container", answers=("a",), first=True, seconds=2.0),
    ]
    assert [(row["fault"], row["qtrace"]) for row in tables.named_first(results)] == [
        ("leaf", "1/2"),
        ("buffer", "1/1"),
        ("container", "1/1"),
        ("all", "3/4"),
    ]
    assert [row["reason"] for row in tables.with_fault(results)] == ["1/1", "0/1", "", "1/2"]
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
