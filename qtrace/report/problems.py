"""The problems of a run, for formats that list them: the gate's violations, else the findings of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qtrace.report.columns import METRICS
from qtrace.report.diagnosis_panel import gist
from qtrace.report.finding import headline
from qtrace.report.records import Finding, GateVerdict, Outcome, ReportData, Violation
from qtrace.report.text import ABSENT, count, number, shown

WHOLE_RUN = "the run"
MOST_DIGITS = 17
HEADERS = {
    **{metric.field: metric.header for metric in METRICS.values()},
    "peir_in": "received PEIR",
    "peir_local": "introduced PEIR",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: `title` in a few words, `text` in full.

    A `finding` has the `violations` that it explains; a violation that no finding explains is a problem of its own. The
    problem of a run without both has neither.
    """

    title: str
    text: str
    finding: Finding | None = None
    violations: tuple[Violation, ...] = ()


def judgement(report: ReportData, verdict: GateVerdict | None) -> str:
    """Return the gate's verdict in one sentence, or without a gate the run's result."""
    if verdict is None:
        return gist(report)
    limits = f" against {verdict.source}" if verdict.source else ""
    if verdict.inconclusive:
        return f"The gate is inconclusive: too little was compared to judge{limits}."
    judged = f"{count(verdict.judged, 'row')} judged{limits}"
    if verdict.passed:
        return f"The gate passed: {judged}."
    if verdict.violations:
        return f"The gate failed: {count(len(verdict.violations), 'violation')}, {judged}."
    return f"The gate failed: {judged}, and no limit that was violated."


def told(verdict: GateVerdict | None) -> list[str]:
    """Return the facts beside the violations: differences from the baseline's environment, then the gate's notes."""
    if verdict is None:
        return []
    undone = (
        f"{count(len(verdict.absorbed), 'violation')} of rows that the calls around them undo"
        if verdict.absorbed
        else ""
    )
    return [*verdict.differences, *verdict.notes, *([undone] if undone else [])]


def problems(report: ReportData, verdict: GateVerdict | None) -> list[Problem]:
    """Return the problems, the worst first; none where the gate passed, or without a gate where the run found none."""
    if verdict is not None:
        if verdict.violations:
            return list(_violated(report, verdict))
        kind = "inconclusive" if verdict.inconclusive else "nothing judged"
        return [] if verdict.passed else [Problem(kind, judgement(report, verdict))]
    if report.findings and report.outcome is Outcome.FAULT:
        found = sorted(report.findings, key=lambda one: one.rank)
        return [Problem(title(one), one.summary, one) for one in found]
    if report.outcome in (Outcome.FAULT, Outcome.INCONCLUSIVE):
        return [Problem(f"outcome {report.outcome.value}", gist(report))]
    return []


def _violated(report: ReportData, verdict: GateVerdict) -> Iterator[Problem]:
    """Yield the violations; those that one finding explains are one problem, in the place of the worst of them."""
    findings = {finding.rank: finding for finding in report.findings}
    seen: set[int] = set()
    for violation in verdict.violations:
        finding = findings.get(violation.finding) if violation.finding is not None else None
        if finding is None:
            yield Problem(f"{place(violation)}: {column(violation)}", violation_text(violation), None, (violation,))
        elif finding.rank not in seen:
            seen.add(finding.rank)
            explained = tuple(one for one in verdict.violations if one.finding == finding.rank)
            worst = next((one for one in explained if one.module is not None), violation)
            explains = f"Explains {count(len(explained), 'violation')}, the worst: {violation_text(worst)}"
            yield Problem(title(finding), f"{finding.summary}. {explains}", finding, explained)


def title(finding: Finding) -> str:
    """Return the module at fault and its error, in a few words."""
    return f"{shown(finding.module)} {headline(finding)}"


def violation_text(violation: Violation) -> str:
    """Return a violation in one sentence."""
    return f"{place(violation)}: {excess(violation)} ({violation.rule})"


def excess(violation: Violation) -> str:
    """Return the distance of the judged value from its limit, with both numbers where they exist."""
    observed, limit = observed_and_limit(violation)
    said = column(violation) + (f" {observed}" if observed != ABSENT else "")
    return f"{said}{f', limit {limit}' if limit != ABSENT else ''}: {violation.reason}"


def place(violation: Violation) -> str:
    """Return the place of a violation: its module path, and call, output and sample where needed to identify it."""
    if violation.module is None:
        return WHOLE_RUN
    text = shown(violation.module)
    if violation.call:
        text += f"#{violation.call}"
    if violation.output:
        text += f" output {violation.output}"
    return text + (f" (sample {violation.sample})" if violation.sample else "")


def column(violation: Violation) -> str:
    """Return the judged column, as a table's heading names it."""
    return HEADERS.get(violation.column, violation.column.replace("_", " "))


def observed_and_limit(violation: Violation) -> tuple[str, str]:
    """Return the observed number and the limit, with enough digits to show that they are not the same.

    >>> observed_and_limit(Violation(module="", column="peir", rule="", reason="", observed=1.0004e-4, limit=1e-4))
    ('1.0004e-04', '1.0000e-04')
    >>> observed_and_limit(Violation(module="", column="sqnr_db", rule="", reason="", observed=39.9996, limit=40.0))
    ('39.9996', '40.0000')
    """
    text, fewest = FORMATS.get(violation.column, (number, 2))
    observed, limit = violation.observed, violation.limit
    if observed is None or limit is None:
        return _or_absent(observed, text, fewest), _or_absent(limit, text, fewest)
    for digits in range(fewest, MOST_DIGITS):
        said = text(observed, digits), text(limit, digits)
        if said[0] != said[1] or observed == limit:
            return said
    return repr(observed), repr(limit)


def _or_absent(value: float | None, text: Callable[[float, int], str], digits: int) -> str:
    return ABSENT if value is None else text(value, digits)


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _share(value: float, digits: int) -> str:
    return f"{100 * value:.{digits}f} %"


FORMATS: dict[str, tuple[Callable[[float, int], str], int]] = {
    "sqnr_db": (_fixed, 2),
    "cosine": (_fixed, 6),
    "coverage": (_share, 1),
}
