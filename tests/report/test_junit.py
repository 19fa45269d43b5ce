"""JUnit XML, as junitparser and the standard library's own parser read it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase

from qtrace.report.junit import BLAMED, junit
from qtrace.report.records import GateVerdict, Outcome, ReportData, Status, Verdict, Violation
from qtrace.report.text import one_line
from tests.helpers.golden_reports import REPORTS, TEXT, leaf, mask_bug, odds, partial
from tests.report.test_formats import HOSTILE, gate, named


def cases_of(report: ReportData, verdict: GateVerdict | None = None) -> list[TestCase]:
    """Return the test cases; fails unless the suite's counts are those of its cases."""
    document = JUnitXml.fromstring(junit(report, verdict).encode("utf-8"))
    suites = list(document)
    assert [suite.name for suite in suites] == ["qtrace"]
    cases = list(suites[0])
    kinds = (Failure, Error, Skipped)
    amounts = [sum(isinstance(one, kind) for case in cases for one in case.result) for kind in kinds]
    assert [suites[0].failures, suites[0].errors, suites[0].skipped] == amounts
    assert (suites[0].tests, document.tests) == (len(cases), len(cases))
    assert (document.failures, document.errors) == (amounts[0], amounts[1])
    names = [(case.classname, case.name) for case in cases]
    assert len(names) == len(set(names))
    return cases


def failed(cases: list[TestCase]) -> list[tuple[str, str]]:
    return [(case.classname, case.name) for case in cases if any(isinstance(r, (Failure, Error)) for r in case.result)]


@pytest.mark.parametrize("name", REPORTS)
def test_every_row_is_a_case_and_the_run_is_one(name: str) -> None:
    report = REPORTS[name]()
    cases = cases_of(report)
    assert len(cases) == len(report.rows) + 1
    assert (cases[0].classname, cases[0].name) == ("qtrace", "outcome")
    assert {case.classname for case in cases[1:]} == {row.module or "<root>" for row in report.rows}


def test_without_a_gate_a_row_fails_by_its_own_verdict_where_somebody_is_to_blame() -> None:
    report = mask_bug()
    blamed = [f"{TEXT}.layers.{layer}" for layer in range(4)]
    assert failed(cases_of(report)) == [("qtrace", "outcome"), *((path, "call 0") for path in blamed)]
    case = next(case for case in cases_of(report) if case.classname == blamed[0])
    assert case.result[0].message == "miscalled: PEIR 5.90e-01, introduced 3.24e-07, received 0"
    assert case.result[0].type == "miscalled"
    assert "1. model.language_model passes a wrong attention_mask" in case.system_out
    assert "quant_text_model.py:212, in forward" in case.system_out


def test_a_fault_of_many_layers_is_told_with_each_of_them() -> None:
    cases = [case for case in cases_of(leaf()) if case.classname.endswith("act_fn")]
    assert len(cases) == 30
    assert all("29 more: model.layers.*.mlp.act_fn" in case.system_out for case in cases)


@pytest.mark.parametrize(("name", "fails"), [("clean", False), ("drift", False), ("blameless", True)])
def test_without_a_gate_the_run_fails_with_its_outcome(name: str, fails: bool) -> None:
    assert failed(cases_of(REPORTS[name]()))[:1] == ([("qtrace", "outcome")] if fails else [])


@pytest.mark.parametrize("name", ["inconclusive", "partial"])
def test_too_little_compared_is_an_error_of_the_run(name: str) -> None:
    result = cases_of(REPORTS[name]())[0].result[0]
    assert isinstance(result, Error)
    assert result.type == "inconclusive"
    empty = dataclasses.replace(partial(), rows=())
    assert failed(cases_of(empty)) == [("qtrace", "outcome")]


def test_what_has_no_partner_is_skipped() -> None:
    skipped = {case.classname: case.result[0].message for case in cases_of(odds()) if _is(case, Skipped)}
    assert skipped == {
        "decoder.skipped": "not compared: only in the reference",
        "decoder.extra": "not compared: only in the candidate",
    }


def _is(case: TestCase, kind: type[Any]) -> bool:
    return any(isinstance(result, kind) for result in case.result)


def test_with_a_gate_only_violations_fail() -> None:
    cases = cases_of(mask_bug(), gate())
    assert failed(cases) == [
        ("qtrace", "gate"),
        ("model.visual.blocks.0.attn.qkv", "call 0"),
        *((f"{TEXT}.layers.{layer}", "call 0") for layer in range(4)),
        ("model.visual.merger", "call 0"),
        ("qtrace", "coverage: min_coverage"),
    ]
    layer = next(case for case in cases if case.classname == f"{TEXT}.layers.0")
    assert layer.result[0].type == "max_peir"
    message = "PEIR 5.90e-01, limit 1.00e-04: above the limit, by a factor of 5900"
    assert layer.result[0].message == message
    assert f"{TEXT}.layers.0: {message} (max_peir)" in layer.result[0].text
    assert "passes a wrong attention_mask" in layer.system_out
    assert failed(cases_of(mask_bug(), gate(passed=True))) == []


def test_the_violations_of_one_row_are_one_case() -> None:
    more = dataclasses.replace(gate().violations[1], column="rel_l2", rule="max_rel_l2")
    verdict = gate(violations=(*gate().violations, more))
    cases = cases_of(mask_bug(), verdict)
    case = next(case for case in cases if case.classname == f"{TEXT}.layers.3")
    assert len(case.result) == 1
    assert "(max_peir)" in case.result[0].text
    assert "(max_rel_l2)" in case.result[0].text


@pytest.mark.parametrize("verdict", [GateVerdict(passed=False), GateVerdict(passed=False, inconclusive=True)])
def test_a_gate_that_judged_nothing_does_not_pass(verdict: GateVerdict) -> None:
    assert failed(cases_of(REPORTS["clean"](), verdict)) == [("qtrace", "gate")]


def test_the_names_of_cases_do_not_hang_on_other_rows() -> None:
    before = {(case.classname, case.name) for case in cases_of(odds())}
    fewer = dataclasses.replace(odds(), rows=odds().rows[::2])
    worse = tuple(dataclasses.replace(row, sample=5, samples=9) for row in odds().rows)
    assert {(case.classname, case.name) for case in cases_of(fewer)} < before
    assert {(case.classname, case.name) for case in cases_of(dataclasses.replace(odds(), rows=worse))} == before


def test_rows_of_a_call_in_several_samples_are_told_apart() -> None:
    row = odds().rows[0]
    both = dataclasses.replace(odds(), rows=(row, dataclasses.replace(row, sample=1)))
    assert [case.name for case in cases_of(both)[1:]] == ["call 0, sample 0", "call 0, sample 1"]


def test_a_line_in_this_repository_is_the_cases_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "port.py").touch()
    monkeypatch.chdir(tmp_path)
    root = ElementTree.fromstring(junit(REPORTS["two"]()))
    files = {case.get("classname"): case.get("file") for case in root.iter("testcase") if case.get("file")}
    assert files == {"model.layers.0.mlp": "port.py"}


def test_only_elements_and_attributes_of_surefires_dialect() -> None:
    allowed = {
        "testsuites": {"name", "tests", "failures", "errors", "time"},
        "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        "properties": set(),
        "property": {"name", "value"},
        "testcase": {"classname", "name", "time", "file"},
        "failure": {"message", "type"},
        "error": {"message", "type"},
        "skipped": {"message"},
        "system-out": set(),
    }
    for report in REPORTS.values():
        for verdict in (None, gate()):
            for element in ElementTree.fromstring(junit(report(), verdict)).iter():
                assert set(element.attrib) <= allowed[element.tag]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_comes_back_whatever_it_holds(name: str) -> None:
    report, verdict = named(name)
    told = [case for case in cases_of(report, verdict) if case.classname != "qtrace"]
    shown = one_line(name) or "<root>"
    assert {case.classname for case in told} == {shown}
    failure = next(case for case in told if case.name.startswith("call 1"))
    column = one_line(name.replace("_", " "))
    assert failure.result[0].message == f"{column} 5.00e-01, limit 1.00e-01: {one_line(name)}"
    assert failure.result[0].type == one_line(name)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_well_formed(name: str) -> None:
    ElementTree.fromstring(junit(*named(name)).encode("utf-8"))


def test_what_blames_a_row_is_every_verdict_that_says_where_an_error_is_made() -> None:
    made = {Verdict.INTRODUCED, Verdict.MISCALLED, Verdict.NON_FINITE, Verdict.STRUCTURE}
    assert set(BLAMED) == made
    row = mask_bug().rows[0]
    for verdict in Verdict:
        report = dataclasses.replace(mask_bug(), rows=(dataclasses.replace(row, verdict=verdict),))
        assert len(failed(cases_of(report))) == 1 + (verdict in made)
        drifting = dataclasses.replace(report, outcome=Outcome.DRIFT)
        assert failed(cases_of(drifting)) == []


@pytest.mark.parametrize(
    ("created", "timestamp"),
    [("2026-01-02T03:04:05.678+00:00", "2026-01-02T03:04:05"), ("yesterday", None)],
)
def test_a_timestamp_has_no_zone_and_no_fraction(created: str, timestamp: str | None) -> None:
    root = ElementTree.fromstring(junit(dataclasses.replace(mask_bug(), created=created)))
    assert [suite.get("timestamp") for suite in root.iter("testsuite")] == [timestamp]


def test_numbers_that_are_none_do_not_stop_it() -> None:
    violation = Violation(module="", column="peir", rule="max_peir", reason="no PEIR", observed=math.nan, limit=1e-4)
    row = dataclasses.replace(odds().rows[0], module="", peir=None, status=Status.CONSTANT_REFERENCE)
    report = dataclasses.replace(odds(), rows=(row,))
    cases = cases_of(report, GateVerdict(passed=False, violations=(violation,)))
    assert cases[1].result[0].message == "PEIR, limit 1.00e-04: no PEIR"
