"""The outcome of a run: in a sentence, and in the line that ends the output."""

from __future__ import annotations

from rich.text import Text

from qtrace.report.finding import headline
from qtrace.report.numbers import count, share
from qtrace.report.paths import shorten
from qtrace.report.records import Outcome, ReportData

STYLES = {Outcome.CLEAN: "bold green", Outcome.FAULT: "bold red"}
UNDECIDED = "bold yellow"


def style(report: ReportData) -> str:
    """Return the style in which the outcome is said."""
    return UNDECIDED if report.error else STYLES.get(report.outcome, UNDECIDED)


def gist(report: ReportData) -> str:
    """Return in one sentence what the run says."""
    if report.error:
        return f"The run ended early, after {count(len(report.rows), 'row')}: {report.error}."
    if report.outcome is Outcome.INCONCLUSIVE:
        covered = report.coverage
        return (
            f"Too little was compared to say: {covered.compared} of {covered.reference_calls} calls "
            f"({share(covered.compared, covered.reference_calls)})."
        )
    return {
        Outcome.CLEAN: "The candidate computes what the reference computes.",
        Outcome.FAULT: "The candidate does not compute what the reference computes.",
        Outcome.DRIFT: "The difference grows slowly; no single module is to blame.",
    }[report.outcome]


def outcome(report: ReportData, *, width: int) -> Text:
    """Return the outcome in one line, with the first finding where there is one."""
    line = Text.assemble((f"outcome: {report.outcome.value}", style(report)), ". ")
    if report.error or not report.findings:
        return line.append(gist(report))
    first = min(report.findings, key=lambda one: one.rank)
    line.append(count(len(report.findings), "finding") + (", first: " if len(report.findings) > 1 else ": "))
    said = f" {headline(first)}."
    return line.append(shorten(first.module, width - len(line) - len(said)) + said)
