"""JUnit XML in the dialect of Maven's Surefire, which GitHub, GitLab and Jenkins read: a test case for each row.

With a gate, rows with violations fail. Without a gate, where the outcome is `fault`, rows fail whose own verdict says
that the error is made or passed on there. Rows that only inherit the error pass; otherwise a fault in an early layer
would fail every module behind it. A first test case represents the run as a whole, so that a run that compared too
little fails however few its rows are.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as xml

from qtrace.report.columns import METRICS, execution_order
from qtrace.report.diagnosis_panel import diagnosis_text, finding_text
from qtrace.report.finding import source_line
from qtrace.report.notes import STATUS_WORDS, notes, spec
from qtrace.report.problems import column, excess, judgement, violation_text
from qtrace.report.records import ONE_SIDED, Finding, GateVerdict, Outcome, ReportData, Row, Status, Verdict, Violation
from qtrace.report.text import number, one_line, share, shown, visible

BLAMED = (Verdict.INTRODUCED, Verdict.MISCALLED, Verdict.NON_FINITE, Verdict.STRUCTURE)
# No row has a time of its own, but readers require the attribute.
TIME = "0"
SUITE = "qtrace"
SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")

Key = tuple[str, int, str, int]
# By rank: the complete text on a finding, and its file in this repository.
Told = Mapping[int, tuple[str, str | None]]


@dataclass(frozen=True, slots=True)
class Case:
    """One test case; `result` is "failure", "error", "skipped" or "" where it passed, `kind` its type."""

    module: str
    name: str
    result: str = ""
    kind: str = ""
    message: str = ""
    text: str = ""
    said: str = ""
    file: str | None = None

    def element(self) -> xml.Element:
        """Return the case as XML."""
        attributes = {"classname": self.module, "name": self.name, "time": TIME}
        if self.file is not None:
            attributes["file"] = self.file
        case = _element("testcase", **attributes)
        if self.result == "skipped":
            case.append(_element("skipped", message=self.message))
        elif self.result:
            case.append(_element(self.result, self.text, message=self.message, type=self.kind))
        if self.said:
            case.append(_element("system-out", self.said))
        return case


def junit(report: ReportData, verdict: GateVerdict | None = None) -> str:
    """Return the report as a JUnit XML document."""
    told = {finding.rank: (finding_text(finding, report), _file(finding)) for finding in report.findings}
    cases = [_whole(report, verdict), *_rows(report, verdict, told), *_without_row(report, verdict, told)]
    counts = {
        "tests": str(len(cases)),
        **{f"{kind}s": str(sum(case.result == kind for case in cases)) for kind in ("failure", "error")},
    }
    suite = _element("testsuite", name=SUITE, **counts, skipped=_skipped(cases), time=TIME)
    if created := SECONDS.match(report.created):
        suite.set("timestamp", created[0])
    suite.append(_properties(report, verdict))
    suite.extend(case.element() for case in cases)
    root = _element("testsuites", name=SUITE, **counts, time=TIME)
    root.append(suite)
    xml.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{xml.tostring(root, encoding="unicode")}\n'


def _whole(report: ReportData, verdict: GateVerdict | None) -> Case:
    """Return the case of the run as a whole, with the diagnosis."""
    said = diagnosis_text(report)
    case = {"module": SUITE, "name": "outcome" if verdict is None else "gate"}
    told = {"message": judgement(report, verdict), "text": said}
    if verdict is None:
        undecided, failed = report.outcome is Outcome.INCONCLUSIVE, report.outcome is Outcome.FAULT
    else:
        undecided, failed = verdict.inconclusive, not verdict.passed
    if undecided:
        return Case(**case, result="error", kind="inconclusive", **told)
    if failed:
        return Case(**case, result="failure", kind=report.outcome.value if verdict is None else "violations", **told)
    return Case(**case, said=said)


def _rows(report: ReportData, verdict: GateVerdict | None, told: Told) -> Iterator[Case]:
    violated = _by_row(verdict.violations if verdict is not None else ())
    alike = Counter(_name(row) for row in report.rows)
    for row in execution_order(report.rows):
        name = _name(row)
        apart = f", sample {row.sample}" if alike[name] > 1 else ""
        case: dict[str, Any] = {"module": name[0], "name": name[1] + apart}
        found = violated.get((row.module, row.call, row.output, row.sample), ())
        if found:
            yield _violation_case(told, found, _numbers(row), **case)
        elif verdict is None and report.outcome is Outcome.FAULT and row.verdict in BLAMED:
            yield _blamed(report, row, told, **case)
        elif row.status in ONE_SIDED:
            yield Case(**case, result="skipped", message=f"not compared: {STATUS_WORDS[row.status]}")
        else:
            yield Case(**case)


def _without_row(report: ReportData, verdict: GateVerdict | None, told: Told) -> Iterator[Case]:
    """Yield a case for each violated limit of the whole run, and for each missing row."""
    if verdict is None:
        return
    present = {(row.module, row.call, row.output, row.sample) for row in report.rows}
    for key, found in _by_row(verdict.violations).items():
        if key not in present:
            yield _violation_case(told, found, module=shown(key[0]), name=_place(found[0]))
    for violation in verdict.violations:
        if violation.module is None:
            yield _violation_case(told, [violation], module=SUITE, name=f"{column(violation)}: {violation.rule}")


def _by_row(violations: Iterable[Violation]) -> dict[Key, list[Violation]]:
    rows: dict[Key, list[Violation]] = defaultdict(list)
    for violation in violations:
        if violation.module is not None:
            rows[violation.module, violation.call, violation.output, violation.sample].append(violation)
    return dict(rows)


def _violation_case(told: Told, found: Sequence[Violation], more: str = "", **case: Any) -> Case:
    """Return the case of a row's violations; `found[0]` is the worst."""
    ranks = {violation.finding for violation in found if violation.finding is not None}
    lines = [*map(violation_text, found), more]
    return Case(
        **case, result="failure", kind=found[0].rule, message=excess(found[0]), text="\n".join(lines).strip("\n"),
        **_explained(told, ranks),
    )  # fmt: skip


def _blamed(report: ReportData, row: Row, told: Told, **case: Any) -> Case:
    """Return the case of a row that the run itself finds at fault."""
    behind = [finding for finding in report.findings if row.module in (*finding.callees, *finding.members)]
    behind = [finding for finding in report.findings if finding.module == row.module] or behind
    kind = row.verdict.value if row.verdict is not None else ""
    what = f"PEIR {number(row.peir)}, introduced {number(row.peir_local)}, received {number(row.peir_in)}"
    return Case(
        **case, result="failure", kind=kind, message=f"{kind.replace('_', ' ')}: {what}", text=_numbers(row),
        **_explained(told, [finding.rank for finding in behind]),
    )  # fmt: skip


def _explained(told: Told, ranks: Collection[int]) -> dict[str, Any]:
    """Return the parts of a case that describe the findings with these ranks."""
    behind = [told[rank] for rank in told if rank in ranks]
    files = [file for _, file in behind if file is not None]
    return {"said": "\n\n".join(text for text, _ in behind), "file": files[0] if files else None}


def _file(finding: Finding) -> str | None:
    line = source_line(finding)
    return line.file if line is not None and line.in_repository else None


def _numbers(row: Row) -> str:
    """Return a row's numbers, one in each line, then its notes."""
    known = [f"{metric.header} {metric.text(row)}" for metric in METRICS.values() if metric.of(row) is not None]
    sides = f"reference {spec(row.reference)}, candidate {spec(row.candidate)}"
    samples = [f"worst of {row.samples} samples: {row.sample}"] if row.samples > 1 else []
    return "\n".join([sides, *samples, *known, *notes(row)])


def _name(row: Row) -> tuple[str, str]:
    """Return a row's module and its name among the module's rows; both stay the same from run to run."""
    return shown(row.module), _place(row) + (" (candidate)" if row.status is Status.CANDIDATE_ONLY else "")


def _place(one: Row | Violation) -> str:
    return f"call {one.call}, output {one.output}" if one.output else f"call {one.call}"


def _properties(report: ReportData, verdict: GateVerdict | None) -> xml.Element:
    covered = report.coverage
    properties = _element("properties")
    said = {
        "qtrace": report.qtrace,
        "reference": report.reference.source or report.reference.type,
        "candidate": report.candidate.source or report.candidate.type,
        "outcome": report.outcome.value,
        "coverage": f"{covered.compared} of {covered.reference_calls} calls "
        f"({share(covered.compared, covered.reference_calls)})",
    }
    if verdict is not None and verdict.source:
        said["limits"] = verdict.source
    properties.extend(_element("property", name=name, value=value) for name, value in said.items())
    return properties


def _skipped(cases: Iterable[Case]) -> str:
    return str(sum(case.result == "skipped" for case in cases))


def _element(tag: str, text: str | None = None, /, **attributes: str) -> xml.Element:
    """Return an element whose text and attributes hold only characters that XML has."""
    element = xml.Element(tag, {name: one_line(value) for name, value in attributes.items()})
    element.text = None if text is None else visible(text)
    return element
