"""Every limit of a policy, at its boundary: just below, equal, just above, NaN, null, missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from qtrace.config import Limits, Policy
from qtrace.gate import judge
from qtrace.report.records import Coverage, GateVerdict, Row
from tests.helpers.gate_rows import INTEGER, alone_row, report, row

# A limit in each column, and what of a row's makes it one that the column is there for.
LIMITS: dict[str, float] = {
    "max_mean": 1e-3,
    "max_max": 2e-3,
    "max_stddev": 5e-4,
    "max_peir": 1e-4,
    "max_peir_related": 1e-4,
    "max_peir_in": 1e-4,
    "max_peir_local": 1e-4,
    "max_rel_l2": 1e-3,
    "max_mismatch": 0.25,
    "min_sqnr_db": 40.0,
    "min_cosine": 0.999,
}
KEYS = sorted(LIMITS)


def column(key: str) -> str:
    return key[4:]


def row_with(key: str, value: float | None) -> Row:
    """Return a row with this number in the column that `key` limits, and integers where only these have one."""
    sides: dict[str, Any] = {"reference": INTEGER, "candidate": INTEGER} if key == "max_mismatch" else {}
    related = {"peir": None} if key == "max_peir_related" else {}
    return row(**{**sides, **related, column(key): value})


def judged(key: str, value: float | None) -> GateVerdict:
    return judge(report(row_with(key, value)), limiting(key))


def limiting(key: str, **fields: Any) -> Policy:
    return Policy(**{key: LIMITS[key], **fields})


def toward(key: str, *, worse: bool) -> float:
    """Return the number next to the limit, on its worse or its better side."""
    up = key.startswith("max_") == worse
    return math.nextafter(LIMITS[key], math.inf if up else -math.inf)


def test_the_table_has_every_limit_that_there_is() -> None:
    assert set(LIMITS) == set(Limits.model_fields)


@pytest.mark.parametrize("key", KEYS)
def test_just_better_than_the_limit_passes(key: str) -> None:
    verdict = judged(key, toward(key, worse=False))
    assert verdict.passed
    assert verdict.judged == 1


@pytest.mark.parametrize("key", KEYS)
def test_equal_to_the_limit_passes(key: str) -> None:
    assert judged(key, LIMITS[key]).passed


@pytest.mark.parametrize("key", KEYS)
def test_just_worse_than_the_limit_fails(key: str) -> None:
    value = toward(key, worse=True)
    verdict = judged(key, value)
    assert not verdict.passed
    assert not verdict.inconclusive
    (violation,) = verdict.violations
    assert (violation.module, violation.column, violation.rule) == ("layer", column(key), key)
    assert (violation.observed, violation.limit) == (value, LIMITS[key])
    assert 1 <= violation.severity < 1.001
    assert "the limit" in violation.reason


@pytest.mark.parametrize("key", KEYS)
def test_nan_fails(key: str) -> None:
    verdict = judged(key, math.nan)
    assert not verdict.passed
    (violation,) = verdict.violations
    assert violation.severity == math.inf
    assert violation.reason == "not a number"


@pytest.mark.parametrize("key", KEYS)
def test_null_fails_and_says_why(key: str) -> None:
    verdict = judged(key, None)
    assert not verdict.passed
    (violation,) = verdict.violations
    assert (violation.observed, violation.severity) == (None, math.inf)
    assert violation.reason.startswith("no ")


@pytest.mark.parametrize("key", KEYS)
def test_a_row_that_one_side_lacks_fails(key: str) -> None:
    verdict = judge(report(row_with(key, LIMITS[key]), alone_row("gone")), limiting(key))
    assert not verdict.passed
    (violation,) = verdict.violations
    assert (violation.module, violation.column, violation.rule) == ("gone", "unmatched", "allow_unmatched")


@pytest.mark.parametrize("key", KEYS)
def test_a_limit_whose_only_row_is_missing_fails(key: str) -> None:
    policy = limiting(key, overrides={"gone": {key: LIMITS[key]}}, allow_unmatched=("gone",))
    verdict = judge(report(row_with(key, LIMITS[key]), alone_row("gone")), policy)
    assert not verdict.passed
    (violation,) = verdict.violations
    assert (violation.module, violation.column, violation.rule) == (None, "missing", "overrides gone")


@pytest.mark.parametrize("key", KEYS)
def test_without_any_row_to_judge_nothing_passes(key: str) -> None:
    policy = limiting(key, allow_unmatched=("gone",))
    verdict = judge(report(alone_row("gone")), policy)
    assert (verdict.passed, verdict.inconclusive, verdict.judged) == (False, True, 0)
    assert "no row could be held against a limit" in verdict.notes


# The limits of the whole run.


@pytest.mark.parametrize(
    ("compared", "passes"),
    [(96, True), (95, True), (94, False), (0, False)],
)
def test_coverage_at_its_boundary(compared: int, passes: bool) -> None:
    covered = replace(report(row()), coverage=Coverage(100, compared))
    verdict = judge(covered, Policy(min_coverage=0.95))
    assert verdict.passed is passes
    # Too little compared says nothing of the models.
    assert verdict.inconclusive is not passes
    if not passes:
        (violation,) = verdict.violations
        assert (violation.column, violation.observed, violation.limit) == ("coverage", compared / 100, 0.95)


def test_a_model_without_calls_inside_has_no_coverage_to_miss() -> None:
    covered = replace(report(row("")), coverage=Coverage(0, 0))
    assert judge(covered, Policy(min_coverage=0.95, max_peir=1.0)).passed
