"""`qtrace report`: shows a stored report on the terminal, or in another format."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtrace.cli.options import RESULTS, ScreenOptions, TableOptions, view_of

if TYPE_CHECKING:
    from qtrace.cli.screen import Screen
    from qtrace.report.records import GateVerdict, ReportData
    from qtrace.report.table import View

VIOLATIONS = 20


class Name(str, Enum):
    """The formats that can be printed."""

    JSON = "json"
    HTML = "html"
    MARKDOWN = "markdown"
    CSV = "csv"
    JUNIT = "junit"
    SARIF = "sarif"
    GITHUB = "github"


def report(
    stored: Annotated[
        Path, typer.Argument(metavar="REPORT", help="A report that --report wrote as .json.", show_default=False)
    ],
    table: TableOptions,
    screen: ScreenOptions,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Write it in the format of the ending: .html, .md (Markdown), .csv, .xml (JUnit), .sarif or .json; "
            "- is JSON on stdout. Repeatable.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    format: Annotated[
        Name | None,
        typer.Option(
            metavar="NAME",
            help="Print it in this format: github (annotations of a workflow's step), markdown, junit, sarif, csv, "
            "html or json.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
) -> None:
    """Show a stored report, or write it in other formats: a page, a comment, test results, code scanning.

    Examples:

    qtrace report report.json

    qtrace report report.json --to report.html --to report.xml

    qtrace report report.json --format markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from qtrace.cli.screen import Screen
    from qtrace.cli.stored_files import read_judged
    from qtrace.errors import UsageError
    from qtrace.report import check, save
    from qtrace.report.formats import NAMES, STDOUT

    view, paths = view_of(table), to or []
    files = [path for path in paths if path != STDOUT]
    printed = [Name.JSON] * (len(paths) - len(files)) + ([format] if format is not None else [])
    if len(printed) > 1:
        raise UsageError("stdout takes one format; give --format once, or --to - once")
    check(files)
    data, verdict = read_judged(stored)
    out = Screen(screen)
    for path in files:
        save(data, path, verdict)
    for name in printed:
        out.json(NAMES[name.value](data, verdict))
    if not paths and format is None:
        _show(data, verdict, view, out)


def _show(report: ReportData, verdict: GateVerdict | None, view: View, out: Screen) -> None:
    """Print a report as `qtrace run` does, and the gate's verdict on it."""
    from qtrace.report import terminal
    from qtrace.report.diagnosis_panel import outcome
    from qtrace.report.gate_verdict import gate_line, gate_section

    out.aside(terminal.warnings(report))
    out.results(terminal.before(report, width=out.width))
    out.results(terminal.results(report, view, width=out.width))
    if verdict is not None:
        out.results(gate_section(verdict, report, width=out.width, top=VIOLATIONS))
        out.outcome(gate_line(verdict, report))
    out.outcome(outcome(report, width=out.width))
