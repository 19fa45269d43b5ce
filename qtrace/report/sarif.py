"""SARIF 2.1.0, for code scanning: the problems as results, at the source lines of their findings.

There is a result for each finding, with the violations that it explains among its properties, and one for each
violation that no finding explains. Code scanning refuses the whole log if one result has no file, so every result has
one: the file of the finding's line, else the file of the limits or of the candidate, else the source of the candidate
as the report names it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from qtrace.report.finding import SourceLine, repository_path, source_line
from qtrace.report.problems import Problem, judgement, problems
from qtrace.report.records import GateVerdict, ReportData, to_plain
from qtrace.report.text import shown, visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
VERSION = "2.1.0"
REPOSITORY = "%SRCROOT%"
ELSEWHERE = "SITE_PACKAGES"

FINDINGS = {
    "introduces": "A module makes an error of its own: it computes something else from the reference's arguments.",
    "miscalls": "A module hands a wrong argument to another one.",
    "non_finite": "A module makes NaN or Inf where the reference does not.",
    "structure": "A module makes other calls than the reference's.",
    "raises": "A module raises an exception where the reference does not.",
}
WHOLE_RUN = "run"
# Used where a file has no name that a URI can hold.
UNKNOWN = "unknown"


def sarif(report: ReportData, verdict: GateVerdict | None = None) -> str:
    """Return the report as a SARIF log of one run; without problems it has no results."""
    found = problems(report, verdict)
    rules = list(dict.fromkeys(map(_rule, found)))
    fallback = _fallback(report, verdict)
    run = {
        "tool": {"driver": {"name": "qtrace", "version": report.qtrace, "rules": list(map(_described, rules))}},
        "invocations": [{"executionSuccessful": report.error is None}],
        "results": [_result(problem, rules, fallback) for problem in found],
        "properties": {
            "judgement": judgement(report, verdict),
            "outcome": report.outcome.value,
            "coverage": to_plain(report.coverage),
        },
    }
    log = {"$schema": SCHEMA, "version": VERSION, "runs": [run]}
    return json.dumps(_readable(log), indent=1, allow_nan=False) + "\n"


def _rule(problem: Problem) -> str:
    if problem.finding is not None:
        return problem.finding.kind
    return f"limit.{problem.violations[0].column}" if problem.violations else WHOLE_RUN


def _described(rule: str) -> dict[str, Any]:
    text = FINDINGS.get(rule)
    if text is None:
        column = rule.removeprefix("limit.")
        text = "The run says too little to judge." if rule == WHOLE_RUN else f"A limit on {column} was not kept."
    said = {"text": text}
    return {
        "id": rule,
        "shortDescription": said,
        "fullDescription": said,
        "help": said,
        "defaultConfiguration": {"level": "error"},
    }


def _result(problem: Problem, rules: Sequence[str], fallback: SourceLine) -> dict[str, Any]:
    rule = _rule(problem)
    line = source_line(problem.finding) or fallback
    modules = [problem.finding.module] if problem.finding is not None else []
    modules += [one.module for one in problem.violations if one.module is not None]
    names = [{"fullyQualifiedName": shown(path), "kind": "module"} for path in dict.fromkeys(modules)]
    argument = (problem.finding.argument or "") if problem.finding is not None else ""
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "level": "error",
        "message": {"text": _message(f"{problem.title}: {problem.text}")},
        "locations": [{"physicalLocation": _location(line), **({"logicalLocations": names} if names else {})}],
        "partialFingerprints": {"qtrace/v1": " ".join([rule, *map(shown, modules[:1]), argument]).strip()},
        "properties": {"violations": to_plain(problem.violations)},
    }


def _location(line: SourceLine) -> dict[str, Any]:
    uri = quote(line.file.lstrip("/") or UNKNOWN, safe="/", errors="backslashreplace")
    return {
        "artifactLocation": {"uri": uri, "uriBaseId": REPOSITORY if line.in_repository else ELSEWHERE},
        "region": {"startLine": line.line},
    }


def _fallback(report: ReportData, verdict: GateVerdict | None) -> SourceLine:
    """Return the line for problems without a finding's line."""
    source = report.candidate.source
    limits = verdict.source.split(", ") if verdict is not None else []
    for file in (*limits, source.split(":")[0]):
        path = repository_path(file) if file else None
        if path is not None:
            return SourceLine(path, 1, True)
    return SourceLine(source or report.candidate.type or "candidate", 1, False)


def _message(text: str) -> str:
    """Return text in which SARIF finds no link."""
    return text.replace("](", "] (")


def _readable(value: Any) -> Any:
    """Return plain JSON data in which no text holds a control character."""
    if isinstance(value, dict):
        return {name: _readable(one) for name, one in value.items()}
    if isinstance(value, list):
        return list(map(_readable, value))
    return visible(value) if isinstance(value, str) else value
