"""Why a test of two models failed: the limits that were not kept, then who is to blame, then the worst rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from qtrace.gate import Update
from qtrace.report.diagnosis import diagnosis
from qtrace.report.gate import baseline_lines, gate_line, gate_section
from qtrace.report.numbers import count
from qtrace.report.plain import WIDTH, plain
from qtrace.report.records import GateVerdict, ReportData
from qtrace.report.selection import View
from qtrace.report.terminal import table

VIOLATIONS = 10
ROWS = 10
# What the command line has and pytest has not.
HINTS = ("; --top 0 shows all", "; --all shows them")


def parity_text(
    report: ReportData, verdict: GateVerdict, *, update: Update | None = None, path: str = "", refusal: str = ""
) -> str:
    """Return the message of a failed test as plain text, one sentence first.

    Args:
        report: of the run.
        verdict: that on it.
        update: what would become of the baseline, where it was to be written,
        path: under this name,
        refusal: and was not, for this reason.
    """
    text = plain(Group(*_parts(report, verdict, update, path, refusal)), width=WIDTH)
    for hint in HINTS:
        text = text.replace(hint, "")
    return text


def _parts(
    report: ReportData, verdict: GateVerdict, update: Update | None, path: str, refusal: str
) -> Iterator[RenderableType]:
    yield gate_line(verdict, report)
    if update is not None and refusal:
        yield from baseline_lines(update, path, refusal, top=VIOLATIONS)
    shown = replace(verdict, violations=verdict.violations[:VIOLATIONS])
    # Who is behind them, the panel below says.
    yield from gate_section(shown, replace(report, findings=()), width=WIDTH, top=0)
    if len(verdict.violations) > VIOLATIONS:
        yield Text(f"… and {count(len(verdict.violations) - VIOLATIONS, 'more violation')}")
    yield Text()
    yield diagnosis(report, View(), width=WIDTH)
    if report.rows:
        yield Text()
        yield from table(report, View(top=ROWS), width=WIDTH)
