"""A report on the terminal: the pair, the ranked rows, what differs on the way, and the outcome last."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qtrace.records import ReportData, Side
from qtrace.render.arguments import arguments_table
from qtrace.render.coverage import coverage
from qtrace.render.inputs import inputs
from qtrace.render.metrics import HIGHER, LOWER, METRICS
from qtrace.render.numbers import count
from qtrace.render.outcome import outcome
from qtrace.render.selection import View, select
from qtrace.render.summary import summary
from qtrace.render.table import rows_table


def heading(report: ReportData) -> RenderableType:
    """Return who was compared with whom: class, parameters, dtypes, source of each side."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, side in (("reference", report.reference), ("candidate", report.candidate)):
        grid.add_row(Text(name), Text.assemble(_model(side), "\n", (side.source, "dim")))
    return grid


def table(report: ReportData, view: View, *, width: int) -> Iterator[RenderableType]:
    """Yield the ranked table, the line that counts what it leaves out, and the legend."""
    chosen = select(report.rows, view)
    if not chosen.rows:
        yield Text("No rows: nothing was compared.")
        return
    yield rows_table(chosen, report.rows, width=width, sort=view.sort)
    if chosen.rest:
        yield Text(f"… and {count(chosen.rest, 'more row')}; --top 0 shows all", style="dim")
    better = f"{LOWER} lower is better"
    if view.sort in METRICS and METRICS[view.sort].better is HIGHER:
        better = f"better: {LOWER} lower, {HIGHER} higher"
    yield Text(f"|reference - candidate|; PEIR = max / reference's interval; {better}", style="dim")


def arguments(report: ReportData, view: View, *, width: int) -> Iterator[RenderableType]:
    """Yield the table of the arguments that differ, where any do."""
    if not report.arguments:
        return
    found, rest = arguments_table(report.arguments, width=width, top=view.top)
    yield Text("Arguments that differ", style="bold")
    yield found
    if rest:
        yield Text(f"… and {count(rest, 'more argument')} of later calls; --top 0 shows all", style="dim")


def warnings(report: ReportData) -> Iterator[RenderableType]:
    """Yield one line a warning."""
    for text in report.warnings:
        yield Text.assemble(("warning: ", "bold yellow"), text)


def before(report: ReportData, *, width: int) -> Iterator[RenderableType]:
    """Yield what is known of a run before its rows: the pair and the inputs."""
    yield heading(report)
    yield Text()
    given = inputs(report, width=width)
    if given is not None:
        yield given
        yield Text()


def results(report: ReportData, view: View, *, width: int) -> Iterator[RenderableType]:
    """Yield what a run found, the coverage and the summary box last."""
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
    return Group(*parts, *told, outcome(report))


def _model(side: Side) -> str:
    """Return a model's class, size and dtypes; devices and mode where they are not the usual ones."""
    said = [side.type, count(side.parameters, "parameter"), ", ".join(side.dtypes)]
    if any(device != "cpu" for device in side.devices):
        said.append(", ".join(side.devices))
    if side.training:
        said.append("in train mode")
    return " · ".join(part for part in said if part)
