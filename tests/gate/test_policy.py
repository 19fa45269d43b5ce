"""A report held against a policy: which limit holds, what the odd rows mean, what the whole run must keep to."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from qtrace.config import Limits, Policy
from qtrace.errors import UsageError
from qtrace.gate import check_patterns, judge
from qtrace.gate.limits import limits_of, specificity
from qtrace.report.records import (
    Argument,
    Coverage,
    Finding,
    GateVerdict,
    Outcome,
    Relation,
    ReportData,
    Row,
    Status,
    TensorSpec,
    Verdict,
)
from tests.helpers.gate_rows import FLOAT, INTEGER, NUMBERLESS, alone_row, equal_row, finding, report, row, unmatched

ALL = Policy(max_mean=1, max_max=1, max_peir=1, max_rel_l2=1, max_mismatch=1, min_sqnr_db=10, min_cosine=0.5)
RATIOS = ("max_peir", "max_peir_related", "max_rel_l2", "min_sqnr_db", "min_cosine")


def violations(verdict: GateVerdict) -> list[tuple[str | None, str]]:
    return [(one.module, one.column) for one in verdict.violations]


# Which limit holds.


def test_the_most_specific_pattern_wins_column_by_column() -> None:
    overrides: dict[str, dict[str, float | None]] = {
        "model.visual.blocks.0.*": {"max_peir": 3.0},
        "model.**": {"max_peir": 1.0, "max_mean": 5.0},
        "model.visual.**": {"max_peir": 2.0},
    }
    held = {limit.key: limit for limit in limits_of("model.visual.blocks.0.attn", {"max_peir": 0.5}, overrides)}
    assert (held["max_peir"].value, held["max_mean"].value) == (3.0, 5.0)
    assert held["max_peir"].rule == "overrides model.visual.blocks.0.*: max_peir"
    (other,) = limits_of("head", {"max_peir": 0.5}, overrides)
    assert (other.value, other.rule) == (0.5, "max_peir")


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("**", "*"),
        ("**", "**.qkv"),
        ("**.qkv", "model.**"),
        ("model.**", "model.*.qkv"),
        ("model.*.*", "model.visual.*"),
        ("model.layers.*", "model.layers.1?"),
        ("model.layers.**", "model.layers.0"),
    ],
)
def test_specificity(wide: str, narrow: str) -> None:
    assert specificity(wide) < specificity(narrow)


def test_of_equally_specific_patterns_the_later_one_wins() -> None:
    overrides: dict[str, dict[str, float | None]] = {"layers.*.a?": {"max_peir": 1.0}, "layers.*.?b": {"max_peir": 2.0}}
    for order in (list(overrides), list(reversed(overrides))):
        (held,) = limits_of("layers.0.ab", {}, {pattern: overrides[pattern] for pattern in order})
        assert held.value == overrides[order[-1]]["max_peir"]


def test_null_lifts_a_limit() -> None:
    policy = Policy.model_validate({"max_peir": 1e-4, "max_mean": 1.0, "overrides": {"layer": {"max_peir": None}}})
    assert judge(report(row(peir=0.5)), policy).passed
    assert not judge(report(row(peir=0.5), row("other")), policy).passed


@pytest.mark.parametrize("where", ["overrides", "allow_unmatched"])
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(where: str) -> None:
    pattern = "layers.0.self_atn"
    fields: dict[str, Any] = {"overrides": {pattern: Limits(max_peir=1)}, "allow_unmatched": (pattern,)}
    policy = Policy(max_peir=1, **{where: fields[where]})
    with pytest.raises(UsageError) as caught:
        judge(report(row("layers.0.self_attn"), row("layers.0.mlp")), policy)
    message = f"the policy's {where} pattern '{pattern}' matches no module; near: layers.0.self_attn"
    assert str(caught.value).startswith(message)
    with pytest.raises(UsageError, match=r"near: layers\.0\.self_attn"):
        check_patterns(policy, ["layers.0.self_attn"])


def test_two_stars_cross_dots_and_one_does_not() -> None:
    rows = [row("layers.0"), row("layers.0.mlp")]
    one = judge(report(*rows), Policy(overrides={"layers.*": Limits(max_peir=0.0)}))
    assert violations(one) == [("layers.0", "peir")]
    two = judge(report(*rows), Policy(overrides={"layers.**": Limits(max_peir=0.0)}))
    assert violations(two) == [("layers.0", "peir"), ("layers.0.mlp", "peir")]


@pytest.mark.parametrize("policy", [Policy(), Policy(allow_unmatched=("layer",), strict=True)])
def test_a_policy_without_limits_is_an_error(policy: Policy) -> None:
    with pytest.raises(UsageError, match="sets no limit at all"):
        judge(report(row()), policy)


def test_nothing_to_check_against_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to check against"):
        judge(report(row()))


# Rows that are no plain pair of numbers.


def test_equal_tensors_pass_every_limit_although_their_sqnr_is_no_number() -> None:
    assert judge(report(equal_row()), ALL).passed


def test_equal_tensors_of_zeros_have_no_angle_and_pass() -> None:
    assert judge(report(equal_row(cosine=None)), Policy(min_cosine=1.0, min_sqnr_db=math.inf)).passed


@pytest.mark.parametrize(
    ("status", "fields", "words"),
    [
        (Status.SHAPE_MISMATCH, {"candidate": TensorSpec((3, 2), "float32")}, "float32 [2,3] against float32 [3,2]"),
        (Status.STRUCTURE_MISMATCH, {"candidate": TensorSpec(type="NoneType", value="None")}, "against None"),
        (Status.NON_FINITE, {"non_finite": (0, 3), "non_finite_same": False}, "3 of the candidate's"),
        (Status.NON_FINITE, {"non_finite": (1, 1)}, "NaN or Inf at other places"),
    ],
)
def test_what_no_number_tells_violates_the_first_limit(status: Status, fields: dict[str, Any], words: str) -> None:
    verdict = judge(report(row("good"), row(status=status, **fields)), Policy(max_peir=1.0, max_mean=1.0))
    (violation,) = verdict.violations
    assert (violation.module, violation.observed, violation.severity) == ("layer", None, math.inf)
    assert words in violation.reason


def test_non_finite_values_at_the_same_places_are_no_violation() -> None:
    fields: dict[str, Any] = {"status": Status.NON_FINITE, "non_finite": (2, 2), "non_finite_same": True}
    assert judge(report(row(**fields)), Policy(max_peir=1e-3)).passed
    assert violations(judge(report(row(**fields, peir=0.5)), Policy(max_peir=1e-3))) == [("layer", "peir")]


def test_nothing_but_nan_on_both_sides_is_no_violation_and_judges_nothing() -> None:
    fields: dict[str, Any] = {"status": Status.NON_FINITE, "non_finite": (6, 6), "non_finite_same": True, **NUMBERLESS}
    verdict = judge(report(row("good"), row(**fields)), Policy(max_peir=1e-3))
    assert (verdict.passed, verdict.judged) == (True, 1)
    assert "1 rows have no finite element to judge" in verdict.notes
    alone = judge(report(row(**fields)), Policy(max_peir=1e-3))
    assert (alone.passed, alone.inconclusive) == (False, True)


def test_an_empty_tensor_judges_nothing() -> None:
    empty = TensorSpec((0, 3), "float32")
    verdict = judge(report(row("good"), row(reference=empty, candidate=empty, **NUMBERLESS)), Policy(max_peir=1e-3))
    assert (verdict.passed, verdict.judged) == (True, 1)


def test_an_empty_shape_is_no_excuse_for_a_number() -> None:
    empty = TensorSpec((0, 3), "float32")
    assert not judge(report(row(reference=empty, candidate=empty, peir=0.9)), Policy(max_peir=1e-3)).passed


def test_rows_that_no_limit_says_anything_of_are_not_judged() -> None:
    verdict = judge(report(row(mismatch=None, peir=0.9)), Policy(max_mismatch=0.0))
    assert (verdict.passed, verdict.inconclusive, verdict.judged) == (False, True, 0)


def test_nothing_absorbs_what_the_model_itself_returns() -> None:
    verdict = judge(report(row("", verdict=Verdict.ABSORBED, peir=0.9)), Policy(max_peir=1e-3))
    assert (violations(verdict), verdict.absorbed) == ([("", "peir")], ())


def test_less_than_nothing_is_no_error() -> None:
    (violation,) = judge(report(row(peir=-1.0)), Policy(max_peir=1e-3)).violations
    assert (violation.severity, violation.reason) == (math.inf, "less than nothing, which no run measures")


@pytest.mark.parametrize(("calls", "compared"), [(0, 0), (10, 100)])
def test_a_coverage_that_cannot_be_is_none(calls: int, compared: int) -> None:
    made = report(row(), coverage=Coverage(calls, compared))
    assert judge(made, Policy(max_peir=1.0, min_coverage=0.5)).inconclusive


def test_what_a_run_left_out_is_told() -> None:
    verdict = judge(report(row(), settings={"only": ["layer"], "skip": []}), Policy(max_peir=1.0))
    assert verdict.notes == ("modules that --only layer left out were not judged",)


def test_a_mean_over_all_samples_is_told() -> None:
    policy = Policy(max_mean=1.0, max_peir=1.0)
    assert judge(report(row()), policy).notes == ()
    assert "max_mean is held against all samples together" in judge(report(row(samples=2)), policy).notes[0]


CONSTANT: dict[str, Any] = {"status": Status.CONSTANT_REFERENCE, "peir": None, "max": 0.5}


def test_a_constant_reference_is_judged_by_its_relative_l2() -> None:
    assert judge(report(row(**CONSTANT, rel_l2=1e-4)), Policy(max_peir=1e-4)).passed
    verdict = judge(report(row(**CONSTANT, rel_l2=2e-4)), Policy(max_peir=1e-4))
    (violation,) = verdict.violations
    assert (violation.column, violation.observed, violation.limit) == ("rel_l2", 2e-4, 1e-4)
    assert violation.rule == "max_peir"
    assert "stands in for PEIR" in violation.reason


def test_of_a_constant_reference_the_largest_difference_speaks_where_it_is_limited() -> None:
    zero = row(**CONSTANT, rel_l2=None, sqnr_db=None, cosine=None)
    everything: dict[str, Any] = {key: 1e-4 if key.startswith("max") else 1.0 for key in RATIOS}
    assert judge(report(zero), Policy(**everything, max_max=0.5)).passed
    assert violations(judge(report(zero), Policy(**everything, max_max=0.4))) == [("layer", "max")]


@pytest.mark.parametrize("key", RATIOS)
def test_a_reference_of_zeros_that_is_not_met_fails_every_ratio(key: str) -> None:
    zero = row(**CONSTANT, rel_l2=None, sqnr_db=None, cosine=None)
    (violation,) = judge(report(zero), Policy.model_validate({key: 0.5})).violations
    assert "the reference is constant; max_max would judge it" in violation.reason


def integers(**fields: Any) -> Row:
    return row(reference=INTEGER, candidate=INTEGER, **fields)


def test_of_integers_one_that_is_off_fails_however_small_the_ratio() -> None:
    wrong = integers(peir=2e-5, mismatch=0.01)
    (violation,) = judge(report(wrong), Policy(max_peir=1e-4)).violations
    assert (violation.column, violation.observed, violation.limit) == ("mismatch", 0.01, 0.0)
    assert violation.rule == "max_peir"
    assert judge(report(wrong), Policy(max_peir=1e-4, max_mismatch=0.01)).passed
    assert judge(report(integers(max=0.0, peir=0.0, mismatch=0.0)), Policy(max_peir=1e-4)).passed
    assert not judge(report(integers(peir=2e-5, mismatch=None)), Policy(max_peir=1e-4)).passed


def test_a_limit_on_the_mismatch_is_for_integers_alone() -> None:
    assert judge(report(row(mismatch=None), integers(mismatch=0.0)), Policy(max_mismatch=0.0)).passed
    mixed = row(candidate=INTEGER, mismatch=0.5)
    assert violations(judge(report(mixed), Policy(max_mismatch=0.25))) == [("layer", "mismatch")]


# Relations.


@pytest.mark.parametrize("verdict", [Verdict.EQUAL, Verdict.LAYOUT, Verdict.GAIN, Verdict.INHERITED, None])
def test_what_remains_under_a_relation_is_judged(verdict: Verdict | None) -> None:
    assert judge(report(row(peir=0.34, peir_related=4e-7, verdict=verdict)), Policy(max_peir=1e-4)).passed
    failing = judge(report(row(peir=0.34, peir_related=2e-4, verdict=verdict)), Policy(max_peir=1e-4))
    assert [one.observed for one in failing.violations] == [2e-4]


@pytest.mark.parametrize(
    "named",
    [finding("layer"), finding("other", members=("other", "layer")), finding("", callee="layer", callees=("layer",))],
)
def test_a_relation_is_no_excuse_where_a_finding_shows(named: Finding) -> None:
    made = report(row(peir=0.34, peir_related=4e-7), findings=(named,))
    (violation,) = judge(made, Policy(max_peir=1e-4)).violations
    assert (violation.observed, violation.finding) == (0.34, 1)


@pytest.mark.parametrize(("kind", "passes"), [("gain", False), ("rotation", False), ("layout", True), ("mask", True)])
def test_nothing_undoes_what_is_done_to_the_final_output(kind: str, passes: bool) -> None:
    final = row("", peir=0.5, peir_related=0.0, relation=Relation(kind, {}, 0.0))
    assert judge(report(final), Policy(max_peir=1e-4)).passed is passes


def test_the_related_peir_has_a_limit_of_its_own() -> None:
    related = row(peir=0.34, peir_related=4e-7, verdict=Verdict.INHERITED)
    assert judge(report(related), Policy(max_peir_related=1e-4)).passed
    assert not judge(report(row(peir=0.34)), Policy(max_peir_related=1e-4)).passed


def test_absorbed_rows_are_listed_and_fail_only_under_strict() -> None:
    absorbed = row(peir=0.34, verdict=Verdict.ABSORBED)
    shape = row("shape", status=Status.SHAPE_MISMATCH, verdict=Verdict.ABSORBED, **NUMBERLESS)
    verdict = judge(report(absorbed, shape), Policy(max_peir=1e-4))
    assert verdict.passed
    assert [one.module for one in verdict.absorbed] == ["shape", "layer"]
    strict = judge(report(absorbed, shape), Policy(max_peir=1e-4, strict=True))
    assert violations(strict) == [("shape", "peir"), ("layer", "peir")]
    assert strict.absorbed == ()


# What was received.


def argument(**fields: Any) -> Argument:
    usual: dict[str, Any] = {"module": "layer", "call": 0, "argument": "mask", "caller": "", "order": 0}
    return Argument(**{**usual, "status": Status.SHAPE_MISMATCH, "reference": FLOAT, "candidate": INTEGER, **fields})


def test_an_argument_that_no_number_tells_fails_the_limit_on_what_is_received() -> None:
    policy = Policy(max_peir_in=1e-3)
    verdict = judge(report(row(peir_in=1e-6), arguments=(argument(),)), policy)
    assert [one.reason for one in verdict.violations] == ["receives another mask: float32 [2,3] against int64 [2,3]"]
    assert judge(report(row(peir_in=1e-6), arguments=(argument(peir=1e-6, call=1),)), policy).passed


# Calls without a partner.


def test_calls_without_a_partner_fail_unless_allowed() -> None:
    rows = [row(), alone_row("rotary", order=1), alone_row("rotary", order=1, output="1")]
    made = report(*rows, unmatched=(unmatched("rotary", "partner_not_called"),))
    (violation,) = judge(made, Policy(max_peir=1.0)).violations
    assert violation.reason == "only in the reference: 2 outputs, partner not called"
    assert judge(made, Policy(max_peir=1.0, allow_unmatched=("rot*",))).passed


def test_a_call_that_only_the_candidate_makes_fails_and_a_further_output_does_not() -> None:
    further = alone_row("layer", Status.CANDIDATE_ONLY, output="extra")
    assert judge(report(row(), further), Policy(max_peir=1.0)).passed
    again = alone_row("layer", Status.CANDIDATE_ONLY, call=1)
    (violation,) = judge(report(row(), again), Policy(max_peir=1.0)).violations
    assert (violation.call, violation.column) == (1, "unmatched")


def test_an_output_that_the_candidate_lacks_fails() -> None:
    lost = alone_row("layer", output="hidden")
    assert violations(judge(report(row(), lost), Policy(max_peir=1.0))) == [("layer", "unmatched")]


def test_an_allowance_that_is_not_needed_is_told() -> None:
    verdict = judge(report(row()), Policy(max_peir=1.0, allow_unmatched=("layer",)))
    assert verdict.passed
    assert verdict.notes == ("allow_unmatched layer is not needed: every call of it was compared",)


# The whole run.


@pytest.mark.parametrize("outcome", [Outcome.FAULT, Outcome.DRIFT, Outcome.CLEAN])
def test_outcomes_that_fail_by_themselves(outcome: Outcome) -> None:
    policy = Policy(fail_on=(outcome.value,))
    verdict = judge(report(row(), outcome=outcome), policy)
    assert violations(verdict) == [(None, "outcome")]
    others = [one for one in (Outcome.FAULT, Outcome.DRIFT, Outcome.CLEAN) if one is not outcome]
    assert all(judge(report(row(), outcome=one), policy).passed for one in others)


def test_a_fault_that_passes_is_told() -> None:
    verdict = judge(report(row(), outcome=Outcome.FAULT), Policy(max_peir=1.0))
    assert verdict.passed
    assert any("passes although the outcome is fault" in note for note in verdict.notes)


def test_an_inconclusive_run_does_not_pass_whatever_its_rows_say() -> None:
    verdict = judge(report(row(), outcome=Outcome.INCONCLUSIVE), Policy(max_peir=1.0))
    assert (verdict.passed, verdict.inconclusive, verdict.violations) == (False, True, ())


def test_a_run_that_ended_early_does_not_pass() -> None:
    verdict = judge(report(row(), error="the candidate raised ValueError"), Policy(max_peir=1.0))
    assert violations(verdict) == [(None, "missing")]
    assert "ended early: the candidate raised ValueError" in verdict.violations[0].reason


def test_violations_are_sorted_worst_first_and_gaps_last() -> None:
    made = report(
        alone_row("alone", order=0),
        row("small", peir=2e-4, order=1),
        row("large", peir=0.5, order=2),
        row("nan", status=Status.NON_FINITE, order=3),
        row("also small", peir=2e-4, order=4),
        outcome=Outcome.FAULT,
    )
    verdict = judge(made, Policy(max_peir=1e-4, fail_on=("fault",)))
    names = [one.module for one in verdict.violations]
    assert names == [None, "nan", "large", "small", "also small", "alone"]
    assert [one.severity for one in verdict.violations[2:4]] == [pytest.approx(5000), pytest.approx(2)]


def test_a_pattern_for_what_a_run_left_out_says_so() -> None:
    with pytest.raises(UsageError, match=r"\(the run left modules out, by --only or --skip\)$"):
        judge(report(row(), settings={"only": ["layer"]}), Policy(max_peir=1.0, allow_unmatched=("other",)))


# The finding behind a violation.


def blamed(made: ReportData) -> dict[str | None, int | None]:
    return {one.module: one.finding for one in judge(made, Policy(max_peir=1e-4)).violations}


def test_the_finding_behind_a_violation() -> None:
    names = ["before", "a.mask", "a.layers.0.mlp", "a.layers.0", "a.layers.1", "b.norm", "b.twin", "after"]
    rows = [row(name, order=place) for place, name in enumerate(names)]
    miscalls = finding("a", 1, kind="miscalls", callees=("a.layers.0", "a.layers.1"), callee="a.layers.0")
    own = finding("b.norm", 2, members=("b.norm", "b.twin"))
    assert blamed(report(*rows, findings=(own, miscalls))) == {
        "before": None,
        "a.mask": None,
        "a.layers.0.mlp": 1,
        "a.layers.0": 1,
        "a.layers.1": 1,
        "b.norm": 2,
        "b.twin": 2,
        "after": 1,
    }


def test_the_innermost_finding_around_a_row_explains_it() -> None:
    rows = [row("a.b.c", order=0), row("a.b", order=1), row("a", order=2)]
    assert blamed(report(*rows, findings=(finding("a", 1), finding("a.b", 2))))["a.b.c"] == 2


# What the gate may know of.

ROOMS = """
import sys, qtrace.gate
parts = [name.split(".")[1:] for name in sys.modules if name.startswith("qtrace.")]
rooms = {".".join(part[:2] if part[0] == "report" else part[:1]) for part in parts}
print(*sorted(rooms), *sorted({"torch", "numpy", "pydantic", "yaml", "rich"} & sys.modules.keys()))
"""


def test_the_gate_knows_only_of_records() -> None:
    done = subprocess.run([sys.executable, "-c", ROOMS], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["errors", "gate", "patterns", "report", "report.records"]
