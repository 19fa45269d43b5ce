"""A report held against an earlier run, and that run's file: what counts as worse, what an update changes."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import qtrace
from qtrace.config import Policy
from qtrace.errors import OutputError, UsageError
from qtrace.gate import Baseline, BaselineRow, differences, judge, load_baseline, save_baseline, update
from qtrace.gate.baseline import dump_baseline
from qtrace.report.records import GateVerdict, ReportData, Row, Status, Verdict
from tests.helpers.gate_rows import INTEGER, NUMBERLESS, equal_row, report, row
from tests.helpers.models import Stack


def baseline_of(*rows: Row, **fields: Any) -> Baseline:
    return dataclasses.replace(update(report(*rows)).baseline, **fields)


def against(then: Row, now: Row, policy: Policy | None = None, **fields: Any) -> GateVerdict:
    """Judge a report of one row against the baseline of one that had another."""
    return judge(report(now), policy, baseline_of(then, **fields))


# What counts as worse.


@pytest.mark.parametrize(
    ("then", "now", "fields", "passes"),
    [
        (1e-3, 1e-3, {}, True),
        (1e-3, 1.25e-3, {}, True),
        (1e-3, math.nextafter(1.25e-3, 1), {}, False),
        (1e-3, 1e-4, {}, True),
        (1e-3, 2e-3, {"factor": 2.0}, True),
        (1e-3, math.nextafter(2e-3, 1), {"factor": 2.0}, False),
        (1e-3, 1e-3, {"factor": 1.0}, True),
        (1.2345678e-3, 1.2345678e-3, {"factor": 1.0}, True),
        (1e-3, 1.5e-3, {"factor": 1.0, "slack": 5e-4}, True),
        (1e-3, 1.6e-3, {"factor": 1.0, "slack": 5e-4}, False),
        # Noise is no regression: the floor of these rows is 1e-6.
        (1e-9, 1e-6, {}, True),
        (0.0, 1e-6, {}, True),
        (0.0, math.nextafter(1e-6, 1), {}, False),
        (1e-3, math.nan, {}, False),
        (1e-3, None, {}, False),
    ],
)
def test_the_peir_at_its_boundary(then: float, now: float | None, fields: dict[str, Any], passes: bool) -> None:
    verdict = against(row(peir=then), row(peir=now), **fields)
    assert verdict.passed is passes
    assert verdict.judged == 1
    if not passes:
        (violation,) = verdict.violations
        assert (violation.module, violation.column, violation.rule) == ("layer", "peir", "baseline")
        assert "in the baseline" in violation.reason


def test_what_is_said_of_a_regression() -> None:
    (violation,) = against(row(peir=1e-3), row(peir=4e-3)).violations
    assert violation.reason == "was 0.001 in the baseline, now 4 times that"
    assert (violation.observed, violation.limit) == (4e-3, 1.25e-3)
    assert violation.severity == pytest.approx(3.2)


def test_the_mean_error_may_not_grow_behind_the_same_peak() -> None:
    assert against(row(rel_l2=1e-4), row(rel_l2=1.25e-4)).passed
    (violation,) = against(row(rel_l2=1e-4), row(rel_l2=1e-3)).violations
    assert (violation.column, violation.limit) == ("rel_l2", 1.25e-4)


def test_one_row_that_is_worse_in_both_is_one_violation() -> None:
    (violation,) = against(row(), row(peir=0.5, rel_l2=0.5)).violations
    assert violation.column == "peir"


@pytest.mark.parametrize(("now", "passes"), [(0.1, True), (0.125, True), (0.13, False), (None, False)])
def test_integers_are_held_by_their_mismatch(now: float | None, passes: bool) -> None:
    integers: dict[str, Any] = {"reference": INTEGER, "candidate": INTEGER}
    verdict = against(row(**integers, peir=1e-9, mismatch=0.1), row(**integers, peir=1e-9, mismatch=now))
    assert verdict.passed is passes
    assert [one.column for one in verdict.violations] == ([] if passes else ["mismatch"])


@pytest.mark.parametrize(("now", "passes"), [(0.5, True), (0.625, True), (0.63, False)])
def test_a_reference_of_zeros_is_held_by_the_largest_difference(now: float, passes: bool) -> None:
    zero: dict[str, Any] = {"status": Status.CONSTANT_REFERENCE, "peir": None, "rel_l2": None}
    verdict = against(row(**zero, max=0.5), row(**zero, max=now))
    assert verdict.passed is passes
    assert [one.column for one in verdict.violations] == ([] if passes else ["max"])


def test_a_constant_reference_is_held_by_its_relative_l2() -> None:
    constant: dict[str, Any] = {"status": Status.CONSTANT_REFERENCE, "peir": None}
    assert against(row(**constant, rel_l2=1e-9), row(**constant, rel_l2=1e-6)).passed
    assert not against(row(**constant, rel_l2=1e-9), row(**constant, rel_l2=2e-6)).passed


@pytest.mark.parametrize(
    "status", [Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH, Status.NON_FINITE, Status.REFERENCE_ONLY]
)
def test_what_could_be_compared_and_no_longer_can_fails(status: Status) -> None:
    broken = row(status=status, **NUMBERLESS)
    (violation,) = against(row(), broken).violations
    assert (violation.column, violation.observed, violation.severity) == ("status", None, math.inf)
    assert violation.reason == f"{status.value.replace('_', ' ')}, and was compared in the baseline"
    # What never could be compared is no worse, and says nothing either.
    again = against(broken, broken)
    assert (again.violations, again.judged, again.inconclusive) == ((), 0, True)


def test_rows_that_vanish_fail_and_rows_that_appear_are_named() -> None:
    verdict = judge(report(row("new"), row("kept")), None, baseline_of(row("gone", call=1, output="h"), row("kept")))
    (violation,) = verdict.violations
    assert (violation.module, violation.call, violation.output) == ("gone", 1, "h")
    assert (violation.column, violation.rule) == ("missing", "baseline")
    assert verdict.notes == ("the baseline does not know new: not judged; --update-baseline takes them in",)
    assert verdict.judged == 1


def test_nothing_in_common_does_not_pass() -> None:
    verdict = judge(report(row("new")), None, baseline_of(row("gone")))
    assert (verdict.passed, verdict.inconclusive, verdict.judged) == (False, True, 0)


def test_rows_that_improve_enough_are_named() -> None:
    verdict = judge(report(row("a", peir=1e-4), row("b", peir=9e-4)), None, baseline_of(row("a"), row("b")))
    assert verdict.passed
    assert verdict.notes == ("improved enough to tighten the baseline: a; --update-baseline does",)


def test_a_line_without_numbers_lets_nothing_pass() -> None:
    untold = Baseline(rows=(BaselineRow(module="layer"),))
    constant = row(status=Status.CONSTANT_REFERENCE, peir=None, rel_l2=0.5)
    assert not judge(report(constant), None, untold).passed
    assert judge(report(row(**{**NUMBERLESS, "max": 0.0})), None, untold).passed


def test_numbers_beside_a_call_of_the_candidate_alone_are_held() -> None:
    extra = row(status=Status.CANDIDATE_ONLY, **NUMBERLESS)
    known = baseline_of(row(peir=1e-3), extra)
    assert judge(report(row(peir=1e-3), extra), None, known).passed
    assert not judge(report(row(peir=0.9), extra), None, known).passed


def test_a_baseline_that_allows_everything_is_an_error() -> None:
    with pytest.raises(UsageError, match="factor is inf; expected a finite number"):
        update(report(row()), factor=math.inf)
    with pytest.raises(UsageError, match="slack is inf; expected a finite number"):
        update(report(row()), slack=math.inf)


def test_absorbed_rows_count_under_strict_alone() -> None:
    now = row(peir=0.5, verdict=Verdict.ABSORBED)
    held = against(row(), now, Policy(max_peir=1.0))
    assert (held.passed, [one.module for one in held.absorbed]) == (True, ["layer"])
    assert not against(row(), now, Policy(max_peir=1.0, strict=True)).passed


def test_a_policy_and_a_baseline_are_both_held() -> None:
    made = report(row("a", peir=0.5), row("b", peir=2e-3))
    verdict = judge(made, Policy(max_peir=0.1), baseline_of(row("a", peir=0.5), row("b", peir=1e-3)))
    assert [(one.module, one.rule) for one in verdict.violations] == [("a", "max_peir"), ("b", "baseline")]


def test_of_several_samples_the_worst_is_held() -> None:
    known = baseline_of(row(sample=0, peir=1e-3), row(sample=1, peir=1e-5))
    assert [one.peir for one in known.rows] == [1e-3]
    (violation,) = judge(report(row(sample=0, peir=1e-3), row(sample=1, peir=1e-2)), None, known).violations
    assert (violation.sample, violation.observed) == (1, 1e-2)


def test_a_run_that_ended_early_does_not_pass() -> None:
    verdict = judge(report(row(), error="interrupted"), None, baseline_of(row()))
    assert [one.column for one in verdict.violations] == ["missing"]


# The environment.


def test_another_environment_is_told_before_any_regression() -> None:
    known = baseline_of(row())
    moved = dataclasses.replace(
        report(row()),
        environment={"threads": 2, "seed": 0, "versions": {"torch": "2.7.0", "tico": "0.3.0"}},
        inputs=({"sample": 0, "name": "x", "spec": {}, "digest": "34cd"},),
    )
    verdict = judge(moved, None, known)
    assert verdict.passed
    assert differences(moved, known) == verdict.differences
    told = [line for line in verdict.differences if not line.startswith("inputs ")]
    assert told == [
        "threads is 2, and was 1 in the baseline",
        "torch is 2.7.0, and was 2.6.0 in the baseline",
        "tico is 0.3.0, and was not there in the baseline",
    ]
    assert len(verdict.differences) == 4
    assert judge(report(row()), None, known).differences == ()


def test_the_digest_of_the_inputs_tells_values_apart() -> None:
    net = Stack()

    def traced(*values: int) -> ReportData:
        return qtrace.trace(net, copy.deepcopy(net), {"ids": torch.tensor([values])})

    known = update(traced(1, 2, 3)).baseline
    assert differences(traced(1, 2, 3), known) == ()
    (told,) = differences(traced(1, 2, 4), known)
    assert told.startswith("inputs is ")


# The file.


def test_a_file_reads_as_it_was_written_and_has_one_row_a_line(tmp_path: Path) -> None:
    rows = [
        row("layers.10", peir=1.23456e-5),
        row("layers.2", call=1, output="hidden", verdict=Verdict.ABSORBED),
        row("layers.2", status=Status.SHAPE_MISMATCH, **NUMBERLESS),
        equal_row("", reference=INTEGER, candidate=INTEGER, mismatch=0.0),
    ]
    known = update(report(*rows), factor=1.5, slack=1e-9).baseline
    path = tmp_path / "baseline.json"
    save_baseline(known, path)
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("  {")] == [
        '  {"module": "", "peir": 0.0, "rel_l2": 0.0, "mismatch": 0.0, "floor": 1e-06},',
        '  {"module": "layers.2", "status": "shape_mismatch"},',
        '  {"module": "layers.2", "call": 1, "output": "hidden", "absorbed": true, "peir": 0.001, "rel_l2": 0.001, '
        '"floor": 1e-06},',
        '  {"module": "layers.10", "peir": 1.24e-05, "rel_l2": 0.001, "floor": 1e-06}',
    ]
    assert json.loads(path.read_text())["environment"]["torch"] == "2.6.0"
    read = load_baseline(path)
    assert (read.factor, read.slack, read.source) == (1.5, 1e-9, str(path))
    assert dump_baseline(read) == path.read_text()
    assert sorted(read.rows, key=str) == sorted(known.rows, key=str)


@pytest.mark.parametrize("value", [1e-7, 1.0000001e-7, 4.18999e-7, 0.9999, 5e-324, 1.7976e308, 9.996e-5, 123.456])
def test_numbers_are_rounded_up_so_that_a_run_keeps_to_its_own(value: float) -> None:
    (line,) = baseline_of(row(peir=value)).rows
    assert line.peir is not None
    assert value <= line.peir <= value * 1.01
    assert against(row(peir=value, floor=0.0), row(peir=value, floor=0.0), factor=1.0).passed


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"factor": 0.9}, "factor is 0.9"), ({"factor": math.nan}, "factor is nan"), ({"slack": -1.0}, "slack is -1")],
)
def test_a_baseline_that_demands_the_impossible_is_an_error(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Baseline(rows=(), **fields)


def test_a_missing_file_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no such baseline: .*b\.json; --update-baseline writes it$"):
        load_baseline(tmp_path / "b.json")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing was written"):
        save_baseline(baseline_of(row()), tmp_path / "no" / "b.json")


# What an update changes.


def test_a_first_baseline_takes_every_row() -> None:
    made = update(report(row("a"), row("b")))
    assert (len(made.baseline.rows), made.loosened, made.appeared, made.kept) == (2, (), (), 0)


@pytest.mark.parametrize(
    ("then", "now", "kept"),
    [
        (1e-3, 1e-3, 1e-3),
        (1e-3, 1.2e-3, 1e-3),
        (1e-3, 0.9e-3, 1e-3),
        (1e-3, 0.8e-3, 0.8e-3),
        (1e-3, 0.5e-3, 0.5e-3),
        # Below the floor of 1e-6 all is noise.
        (1e-6, 1e-9, 1e-6),
        (1e-9, 9e-7, 1e-9),
    ],
)
def test_only_what_is_better_by_more_than_noise_changes_a_line(then: float, now: float, kept: float) -> None:
    known = baseline_of(row(peir=then))
    made = update(report(row(peir=now)), known)
    (line,) = made.baseline.rows
    assert line.peir == kept
    assert made.loosened == ()
    assert (made.tightened, made.kept) == ((("layer",), 0) if kept != then else ((), 1))
    assert judge(report(row(peir=now)), None, made.baseline).passed


@pytest.mark.parametrize(
    ("rows", "fields", "words"),
    [
        ([row(peir=2e-3)], {}, r"layer: PEIR was 0\.001 in the baseline, now 2 times that"),
        ([row(peir=None)], {}, r"layer: PEIR no number, and was 0\.001 in the baseline"),
        ([row(status=Status.SHAPE_MISMATCH, **NUMBERLESS)], {}, "layer: status shape mismatch"),
        ([row("new")], {}, "layer: the run has no such row"),
        ([row()], {"factor": 2.0}, r"the factor grows from 1\.25 to 2"),
        ([row()], {"slack": 1e-3}, r"the slack grows from 0 to 0\.001"),
        ([row(peir=2e-3, verdict=Verdict.ABSORBED)], {}, "layer: PEIR was"),
    ],
)
def test_what_an_update_loosens_is_named(rows: list[Row], fields: dict[str, Any], words: str) -> None:
    made = update(report(*rows), baseline_of(row()), **fields)
    (told,) = made.loosened
    assert re.match(words, told)
    assert not judge(
        report(*rows), Policy(max_peir=1.0, strict=True) if rows[0].peir else None, made.baseline
    ).violations


def test_an_update_keeps_the_factor_and_slack_of_the_file() -> None:
    made = update(report(row()), baseline_of(row(), factor=1.5, slack=1e-9)).baseline
    assert (made.factor, made.slack) == (1.5, 1e-9)
    tighter = update(report(row()), made, factor=1.1, slack=0.0)
    assert (tighter.baseline.factor, tighter.baseline.slack, tighter.loosened) == (1.1, 0.0, ())


def test_a_row_that_can_be_compared_again_tightens() -> None:
    made = update(report(row()), baseline_of(row(status=Status.SHAPE_MISMATCH, **NUMBERLESS)))
    assert (made.tightened, made.loosened) == (("layer",), ())
    assert made.baseline.rows == (BaselineRow(module="layer", peir=1e-3, rel_l2=1e-3, floor=1e-6),)


# Real runs.


def cast(net: torch.nn.Module) -> torch.nn.Module:
    """Return a copy whose weights have seen bfloat16: each of its rows differs."""
    made = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return made


def test_runs_on_one_machine_agree_within_their_floors() -> None:
    net = Stack(width=16)
    inputs = {"ids": torch.arange(24).reshape(2, 12) % 16}

    def run() -> ReportData:
        return qtrace.trace(net, cast(net), inputs, local=False)

    first = run()
    known = update(first).baseline
    assert all(line.peir is None or line.peir > 0 for line in known.rows)
    exact = dataclasses.replace(known, factor=1.0, slack=0.0)
    for _ in range(20):
        again = run()
        verdict = judge(again, None, exact)
        assert (verdict.passed, verdict.judged, verdict.differences) == (True, len(first.rows), ())
        assert dump_baseline(update(again, known).baseline) == dump_baseline(known)


def test_a_change_that_makes_a_module_worse_is_named_with_its_finding() -> None:
    net = Stack(width=16)
    inputs = {"ids": torch.arange(12)[None] % 16}
    known = update(qtrace.trace(net, cast(net), inputs)).baseline
    worse = cast(net)
    with torch.no_grad():
        worse.get_parameter("layers.1.value.weight")[3] *= -1
    made = qtrace.trace(net, worse, inputs)
    verdict = judge(made, None, known)
    assert not verdict.passed
    assert "layers.1.value" in {one.module for one in verdict.violations}
    assert not any((one.module or "").startswith("layers.0") for one in verdict.violations)
    assert made.findings[(verdict.violations[0].finding or 0) - 1].module == "layers.1.value"
