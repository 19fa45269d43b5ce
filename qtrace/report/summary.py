"""The summary box: how far apart the two models' final outputs are, in the numbers that people quote."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qtrace.report.metrics import HIGHER, LOWER
from qtrace.report.notes import STATUS_WORDS
from qtrace.report.numbers import ABSENT, decibels, number, percent
from qtrace.report.records import ReportData, Row, Status, Verdict

TITLE = "Final output, reference against candidate"


def root_rows(report: ReportData) -> list[Row]:
    """Return the rows of the root's outputs, in execution order."""
    return sorted((row for row in report.rows if row.module == ""), key=lambda row: row.order)


def summary(report: ReportData) -> RenderableType | None:
    """Return the box with Mean |diff|, PEIR in percent and SQNR in dB of each final output, if any."""
    rows = root_rows(report)
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("output", overflow="fold")
    for heading in ("Mean |diff|", f"PEIR {LOWER}", f"SQNR {HIGHER}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = row.output or "output"
        if row.samples > 1:
            name += f", worst of {row.samples} samples: {row.sample}"
        table.add_row(Text(name), Text(mean_text(row)), Text(peir_text(row)), Text(sqnr_text(row)))
    return Panel(table, title=TITLE, box=box.ROUNDED, expand=False, title_align="left")


def mean_text(row: Row) -> str:
    """Return the mean absolute difference in the output's own unit, as a plain decimal where that reads."""
    if row.mean is None:
        return ABSENT
    return f"{row.mean:.6f}" if 1e-3 <= row.mean < 1e6 else number(row.mean)


def peir_text(row: Row) -> str:
    """Return PEIR in percent, or the status that says why there is none."""
    if row.status not in (Status.COMPARED, Status.CONSTANT_REFERENCE) and row.verdict is not Verdict.EQUAL:
        return STATUS_WORDS[row.status]
    return percent(row.peir)


def sqnr_text(row: Row) -> str:
    """Return the signal-to-noise ratio in dB; without any noise it is infinite."""
    if row.sqnr_db is not None:
        return f"{decibels(row.sqnr_db)} dB"
    return "∞ dB (equal)" if row.peir == 0 or row.verdict is Verdict.EQUAL else ABSENT
