"""What the gate says on the terminal: golden text, and numbers that never hide a failure."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrace.config import Limits, Policy
from qtrace.gate import judge, update
from qtrace.report.gate_verdict import baseline_lines, gate_line, gate_section
from qtrace.report.problems import observed_and_limit
from qtrace.report.records import GateVerdict, ReportData, Violation
from tests.helpers import golden_files
from tests.helpers.gate_rows import report, row
from tests.helpers.golden_reports import REPORTS, TEXT, clean, drift, mask_bug, odds
from tests.report.test_table import text_of

WIDTHS = (80, 120)


def shown(verdict: GateVerdict, made: ReportData, width: int, top: int = 5) -> str:
    parts = [*gate_section(verdict, made, width=width, top=top), gate_line(verdict, made)]
    return text_of(parts, width)


def failing() -> tuple[ReportData, Policy, None]:
    visual = Limits(max_peir=1e-6, min_sqnr_db=85.0)
    return mask_bug(), Policy(max_peir=1e-4, overrides={"model.visual.**": visual}, fail_on=("fault",)), None


def regressed() -> tuple[ReportData, None, Any]:
    rows = [row("layers.10", peir=1.0004e-4), row("layers.2"), row("gone", output="h")]
    known = update(report(*rows)).baseline
    environment = {"threads": 4, "versions": {"torch": "2.7.0"}}
    now = [row("layers.10", order=3, peir=0.25), row("layers.2", order=1, peir=2e-3), row("new", order=2)]
    return report(*now, environment=environment), None, known


def passing() -> tuple[ReportData, Policy, None]:
    return clean(), Policy(max_peir=1e-4, allow_unmatched=("**.rotary*",), min_coverage=0.9), None


def undecided() -> tuple[ReportData, Policy, None]:
    return REPORTS["inconclusive"](), Policy(max_peir=1e-4, min_coverage=0.95), None


CASES = {"failing": failing, "regressed": regressed, "passing": passing, "undecided": undecided}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_a_verdict_reads_as_its_golden_file(name: str, width: int) -> None:
    made, policy, known = CASES[name]()
    verdict = judge(made, policy, known, source="policy.yaml")
    text = shown(verdict, made, width)
    assert max(map(len, text.splitlines())) <= width
    golden_files.same_as_golden(text, f"gate_{name}.{width}.txt")


def test_every_violation_is_there_with_its_numbers_rule_and_finding() -> None:
    made, policy, _ = failing()
    verdict = judge(made, policy)
    text = shown(verdict, made, 160, top=0)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for one in verdict.violations:
        observed, limit = observed_and_limit(one)
        start = "the run outcome" if one.module is None else one.module
        assert any(line.startswith(start) and observed in line and limit in line for line in lines)
        assert any(line.startswith(f"{one.rule}: ") for line in lines)
    assert f"1. {TEXT} passes a wrong attention_mask" in lines
    assert len(verdict.violations) > 20


def test_more_violations_than_asked_for_are_counted() -> None:
    made, policy, _ = failing()
    verdict = judge(made, policy)
    assert f"… and {len(verdict.violations) - 3} more violations; --top 0 shows all" in shown(verdict, made, 80, top=3)


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_any_report_can_be_shown(name: str, width: int) -> None:
    made = REPORTS[name]()
    for policy in (Policy(max_peir=1e-9, min_cosine=1.0, fail_on=("fault",)), Policy(max_peir=1.0, strict=True)):
        text = shown(judge(made, policy), made, width)
        assert text.splitlines()[-1] or text
        assert "gate: " in text


def test_the_first_violation_in_execution_order_is_named_where_nobody_is_blamed() -> None:
    made = drift()
    text = shown(judge(made, Policy(max_peir=1e-2)), made, 120)
    assert "First in execution order: model.layers.5 PEIR 1.20e-02 > 1.00e-02." in text


def test_the_odd_ones_say_why_there_is_no_number() -> None:
    made = odds()
    text = shown(judge(made, Policy(max_peir=1e-3)), made, 200, top=0)
    for words in ("float32 [2,3] against float32 [2,4]", "NaN or Inf at other places"):
        assert words in text


# A rounded display never hides a failure.


@pytest.mark.parametrize(
    ("column", "observed", "limit", "said"),
    [
        ("peir", 1.0004e-4, 1e-4, ("1.0004e-04", "1.0000e-04")),
        ("peir", 0.5, 1e-4, ("5.00e-01", "1.00e-04")),
        ("sqnr_db", 39.99999, 40.0, ("39.99999", "40.00000")),
        ("sqnr_db", 20.0, 40.0, ("20.00", "40.00")),
        ("cosine", 0.99899999999, 0.999, ("0.99899999999", "0.99900000000")),
        ("coverage", 0.94999, 0.95, ("94.999 %", "95.000 %")),
        ("coverage", 0.5, 0.95, ("50.0 %", "95.0 %")),
        ("mismatch", 1e-9, 0.0, ("1.00e-09", "0")),
        ("peir", None, 1e-4, ("-", "1.00e-04")),
        ("outcome", None, None, ("-", "-")),
    ],
)
def test_both_numbers_have_the_digits_that_tell_them_apart(
    column: str, observed: float | None, limit: float | None, said: tuple[str, str]
) -> None:
    assert (
        observed_and_limit(Violation(module="", column=column, rule="", reason="", observed=observed, limit=limit))
        == said
    )


@given(
    limit=st.floats(min_value=1e-12, max_value=1e6),
    steps=st.integers(min_value=1, max_value=100),
    column=st.sampled_from(["peir", "mean", "sqnr_db", "cosine", "coverage"]),
)
def test_numbers_however_near_are_shown_apart_and_in_order(limit: float, steps: int, column: str) -> None:
    observed = limit
    for _ in range(steps):
        observed = math.nextafter(observed, math.inf)
    texts = observed_and_limit(Violation(module="", column=column, rule="", reason="", observed=observed, limit=limit))
    first, second = (float(re.sub(r" %$", "", text)) for text in texts)
    assert first > second


# What became of the baseline.


def told(then: list[float], now: list[float], refusal: str = "", *, top: int = 20) -> str:
    def made(peirs: list[float]) -> ReportData:
        return report(*(row(f"layers.{n}", peir=peir) for n, peir in enumerate(peirs)))

    known = update(made(then)).baseline if then else None
    return " ".join(text_of(list(baseline_lines(update(made(now), known), "b.json", refusal, top=top)), 120).split())


def test_what_became_of_the_baseline() -> None:
    assert told([], [1e-3, 1e-3]) == "baseline b.json written: 2 rows"
    changes = told([1e-3, 1e-3, 1e-3], [1e-3, 1e-4, 5e-3, 1e-3])
    assert changes.startswith(
        "LOOSER: b.json is looser now in 1 place: layers.2: PEIR was 0.001 in the baseline, now 5"
    )
    assert changes.endswith("baseline b.json written: 4 rows (1 loosened, 1 tightened, 1 new, 1 as before)")


def test_a_baseline_that_was_not_written_says_why() -> None:
    refused = told([1e-3, 1e-3], [5e-3, 5e-3], "it would be looser", top=1)
    assert "LOOSER: b.json would be looser in 2 places: layers.0: PEIR" in refused
    assert "… and 1 more; --top 0 shows all" in refused
    assert refused.endswith("baseline b.json was not written: it would be looser")
