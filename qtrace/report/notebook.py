"""A report as a notebook shows it: the terminal's own sections, as preformatted HTML."""

from __future__ import annotations

import io

from qtrace.report.records import ReportData

WIDTH = 120
FRAME = '<pre style="white-space:pre;overflow-x:auto;line-height:1.3">{code}</pre>'


def to_html(report: ReportData) -> str:
    """Return the report as an HTML fragment with its styles inline."""
    from rich.console import Console

    from qtrace.report.selection import View
    from qtrace.report.terminal import render

    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False, legacy_windows=False)
    console.print(render(report, View(), width=WIDTH))
    return console.export_html(inline_styles=True, code_format=FRAME)
