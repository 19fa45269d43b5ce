"""The terminal's own words in a file: the diagnosis, a finding, as text without colour."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType

from qtrace.report.diagnosis import diagnosis
from qtrace.report.finding import finding_lines
from qtrace.report.records import Finding, ReportData
from qtrace.report.selection import View
from qtrace.report.visible import visible

WIDTH = 96


def plain(part: RenderableType, *, width: int = WIDTH) -> str:
    """Return a part of the terminal's report as text of `width` columns."""
    console = Console(
        file=io.StringIO(), width=width, color_system=None, force_jupyter=False, legacy_windows=False, highlight=False
    )
    with console.capture() as captured:
        console.print(part)
    return visible("\n".join(line.rstrip() for line in captured.get().split("\n")).strip("\n"))


def diagnosis_text(report: ReportData) -> str:
    """Return the diagnosis without its heading and its rules."""
    panel = plain(diagnosis(report, View(), width=WIDTH)).split("\n")
    inner = panel[1:-1]
    margin = min((len(line) - len(line.lstrip()) for line in inner if line), default=0)
    return "\n".join(line[margin:] for line in inner)


def finding_text(finding: Finding, report: ReportData) -> str:
    """Return all that there is to say of one finding."""
    return plain(Group(*finding_lines(finding, report, View(), width=WIDTH)))
