"""SARIF, against the official schema, and what code scanning asks of a file beyond that."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.report.records import GateVerdict, ReportData, Violation
from qtrace.report.sarif import FINDINGS, sarif
from qtrace.report.text import visible
from tests.helpers.golden_reports import REPORTS, mask_bug, side, two
from tests.report.test_formats import HOSTILE, gate, named

SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.validators.validator_for(SCHEMA)(SCHEMA, format_checker=jsonschema.FormatChecker())
URI = re.compile(r"(?!/)(?:[A-Za-z0-9._~/!$&'()*+,;=@-]|%[0-9A-F]{2})+")


def run_of(report: ReportData, verdict: GateVerdict | None = None) -> dict[str, Any]:
    """Return the one run of a valid log, each of whose results code scanning can place."""
    log = json.loads(sarif(report, verdict))
    errors = [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(log)]
    assert errors == []
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules))
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert URI.fullmatch(place["artifactLocation"]["uri"])
        assert place["region"]["startLine"] >= 1
    found: dict[str, Any] = run
    return found


def file_of(result: dict[str, Any]) -> tuple[str, str, int]:
    place = result["locations"][0]["physicalLocation"]
    artifact = place["artifactLocation"]
    return artifact["uriBaseId"], artifact["uri"], place["region"]["startLine"]


def test_the_schema_is_the_official_one_and_can_fail() -> None:
    assert SCHEMA["$id"].endswith("oasis-tcs/sarif-spec/master/Schemata/sarif-schema-2.1.0.json")
    jsonschema.validators.validator_for(SCHEMA).check_schema(SCHEMA)
    log = json.loads(sarif(mask_bug()))
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert len(list(VALIDATOR.iter_errors(log))) == 1


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_is_valid(name: str) -> None:
    for verdict in (None, gate(), gate(passed=True), GateVerdict(passed=False, inconclusive=True)):
        run_of(REPORTS[name](), verdict)


def test_a_finding_is_a_result_at_its_line_with_the_violations_that_it_explains() -> None:
    run = run_of(mask_bug(), gate())
    assert [result["ruleId"] for result in run["results"]] == [
        "limit.missing", "miscalls", "limit.cosine", "limit.coverage",
    ]  # fmt: skip
    finding = run["results"][1]
    assert file_of(finding) == ("SITE_PACKAGES", "tico/quantization/wrapq/quant_text_model.py", 212)
    assert finding["message"]["text"].startswith("model.language_model passes a wrong attention_mask: receives the")
    names = [one["fullyQualifiedName"] for one in finding["locations"][0]["logicalLocations"]]
    assert names[:2] == ["model.language_model", "model.language_model.layers.3"]
    assert [one["limit"] for one in finding["properties"]["violations"]] == [1e-4] * 4
    assert finding["partialFingerprints"] == {"qtrace/v1": "miscalls model.language_model attention_mask"}
    assert run["properties"]["judgement"] == "The gate failed: 7 violations, 40 rows judged against policy.yaml."
    assert run["invocations"] == [{"executionSuccessful": True}]


def test_a_passed_gate_and_a_clean_run_have_no_results() -> None:
    for run in (run_of(mask_bug(), gate(passed=True)), run_of(REPORTS["clean"]()), run_of(REPORTS["drift"]())):
        assert run["results"] == []


def test_a_run_that_ended_early_was_no_success() -> None:
    assert run_of(REPORTS["partial"]())["invocations"] == [{"executionSuccessful": False}]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / "a folder")
    return tmp_path / "a folder"


def test_a_line_of_the_repository_is_named_from_its_root(repository: Path) -> None:
    (repository / "port.py").touch()
    assert file_of(run_of(two())["results"][0]) == ("%SRCROOT%", "a%20folder/port.py", 88)


@pytest.mark.parametrize(
    ("files", "place"),
    [
        (["policy.yaml", "models.py"], ("%SRCROOT%", "a%20folder/policy.yaml", 1)),
        (["models.py"], ("%SRCROOT%", "a%20folder/models.py", 1)),
        ([], ("SITE_PACKAGES", "models.py%3Aquantized", 1)),
    ],
)
def test_what_has_no_line_is_placed_at_the_limits_or_the_candidate(
    repository: Path, files: list[str], place: tuple[str, str, int]
) -> None:
    for file in files:
        (repository / file).touch()
    report = dataclasses.replace(mask_bug(), candidate=side("models.py:quantized", "Net"))
    results = run_of(report, gate(source="the config's limits, policy.yaml"))["results"]
    assert [file_of(result) for result in results if result["ruleId"].startswith("limit.")] == [place] * 3


def test_every_kind_of_finding_has_its_rule() -> None:
    for kind in FINDINGS:
        finding = dataclasses.replace(mask_bug().findings[0], kind=kind)
        run = run_of(dataclasses.replace(mask_bug(), findings=(finding,)))
        assert run["tool"]["driver"]["rules"][0]["shortDescription"]["text"] == FINDINGS[kind]


def test_text_that_looks_like_a_link_is_none() -> None:
    violation = Violation(module="m", column="peir", rule="r", reason="float32 [1,84](int64 [1](2)", severity=math.inf)
    (result,) = run_of(REPORTS["clean"](), GateVerdict(passed=False, violations=(violation,)))["results"]
    assert "](" not in result["message"]["text"]
    assert "[1,84] (int64 [1] (2)" in result["message"]["text"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_comes_back_whatever_it_holds(name: str) -> None:
    results = run_of(*named(name))["results"]
    assert len(results) == 2
    names = [one["fullyQualifiedName"] for one in results[0]["locations"][0]["logicalLocations"]]
    assert names == [visible(name) or "<root>"]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_valid(name: str) -> None:
    run_of(*named(name))
