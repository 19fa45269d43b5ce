"""Shows a whole report on the terminal or in a notebook: the pair, the diagnosis, the ranked rows, the outcome last."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qtrace.report.arguments import arguments_table, inputs
from qtrace.report.columns import HIGHER, LOWER, METRICS
from qtrace.report.coverage import coverage
from qtrace.report.diagnosis_panel import diagnosis, outcome, summary
from qtrace.report.records import ReportData, Side
from qtrace.report.table import INTRODUCED, RECEIVED, SAMPLE, View, rows_tables, select, verdict_word
from qtrace.report.text import LEGEND, count

ORIGINS = (
    (RECEIVED, "received: the largest among its arguments"),
    (INTRODUCED, "introduced: made there, on the reference's arguments"),
)


def heading(report: ReportData) -> RenderableType:
    """Return the two compared models: class, parameters, dtypes and source of each side."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, side in (("reference", report.reference), ("candidate", report.candidate)):
        grid.add_row(Text(name), Text.assemble(_model(side), "\n", (side.source, "dim")))
    return grid


def table(report: ReportData, view: View, *, width: int) -> Iterator[RenderableType]:
    """Yield the ranked rows, the lines that count the rows left out, and the legend."""
    chosen = select(report, view)
    if not chosen.rows:
        yield Text("No rows: nothing was compared.")
        return
    tables = list(rows_tables(chosen, report, width=width))
    yield tables[0]
    if chosen.rest:
        yield Text(f"… and {count(chosen.rest, 'more row')}; --top 0 shows all", style="dim")
    if chosen.folded:
        folded = ", ".join(f"{n} {verdict_word(verdict)}" for verdict, n in chosen.folded.most_common())
        yield Text(f"… folded away: {folded}; --all shows them", style="dim")
    for more in tables[1:]:
        yield Text()
        yield more
    yield from _legend(tables, chosen.sort)


def _legend(tables: Sequence[Table], sort: str) -> Iterator[Text]:
    """Yield the meanings of the columns that the tables have."""
    headings = {str(column.header).strip() for one in tables for column in one.columns}
    better = f"{LOWER} lower is better"
    if sort in METRICS and METRICS[sort].better is HIGHER:
        better = f"better: {LOWER} lower, {HIGHER} higher"
    lines = [f"|reference - candidate|; PEIR = max / reference's interval; {better}"]
    origin = [text for column, text in ORIGINS if column.heading in headings]
    if origin:
        lines.append("; ".join([*origin, f"bar: {LEGEND}"]))
    if SAMPLE.heading in headings:
        lines.append("sample: the worst of so many (counted from 0); mean to stddev are over all of them")
        lines[-1] += "; introduced is of the one looked into" if INTRODUCED.heading in headings else ""
    yield from (Text(line, style="dim") for line in lines)


def arguments(report: ReportData, view: View, *, width: int) -> Iterator[RenderableType]:
    """Yield the table of the arguments that differ, where any do."""
    if not report.arguments:
        return
    top = 0 if view.everything and view.top is None else view.top
    found, rest = arguments_table(report.arguments, width=width, top=top)
    yield Text("Arguments that differ", style="bold")
    yield found
    if rest:
        yield Text(f"… and {count(rest, 'more argument')} of later calls; --top 0 shows all", style="dim")


def warnings(report: ReportData) -> Iterator[RenderableType]:
    """Yield one line for each warning."""
    for text in report.warnings:
        yield Text.assemble(("warning: ", "bold yellow"), text)


def before(report: ReportData, *, width: int) -> Iterator[RenderableType]:
    """Yield the sections before a run's rows: the pair and the inputs."""
    yield heading(report)
    yield Text()
    given = inputs(report, width=width)
    if given is not None:
        yield given
        yield Text()


def results(report: ReportData, view: View, *, width: int) -> Iterator[RenderableType]:
    """Yield the results of a run: the diagnosis first, the coverage and the summary box last."""
    yield diagnosis(report, view, width=width)
    yield Text()
    yield from table(report, view, width=width)
    yield Text()
    differing = list(arguments(report, view, width=width))
    if differing:
        yield from differing
        yield Text()
    yield coverage(report)
    box = summary(report)
    if box is not None:
        yield box


def render(report: ReportData, view: View, *, width: int) -> RenderableType:
    """Return the whole report for a terminal of `width` columns."""
    parts = [*before(report, width=width), *results(report, view, width=width)]
    told = list(warnings(report))
    return Group(*parts, *told, outcome(report, width=width))


def _model(side: Side) -> str:
    """Return a model's class, size and dtypes; devices and mode where they are unusual."""
    said = [side.type, count(side.parameters, "parameter"), ", ".join(side.dtypes)]
    if any(device != "cpu" for device in side.devices):
        said.append(", ".join(side.devices))
    if side.training:
        said.append("in train mode")
    return " · ".join(part for part in said if part)


WIDTH = 120
FRAME = '<pre style="white-space:pre;overflow-x:auto;line-height:1.3">{code}</pre>'


def to_html(report: ReportData) -> str:
    """Return the report as an HTML fragment with its styles inline."""
    from rich.console import Console

    from qtrace.report.table import View

    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False, legacy_windows=False)
    console.print(render(report, View(), width=WIDTH))
    return console.export_html(inline_styles=True, code_format=FRAME)
