"""The ranked rows, fitted to a width: where the error comes from, and the statistics of the difference.

Both stand in one table where that leaves the paths room, else in two, one below the other. Numbers and the
columns that tell rows apart (sample, call) are never cut. Output path, type and notes have columns of their own
where the width allows; where it does not they stand under the module path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qtrace.report.bar import bar
from qtrace.report.leap import escapes
from qtrace.report.metrics import LOWER, METRICS, STATISTICS
from qtrace.report.notes import notes
from qtrace.report.numbers import ABSENT, number
from qtrace.report.paths import shorten_all, shown
from qtrace.report.records import Outcome, ReportData, Row, Verdict
from qtrace.report.selection import Selection

# What a path needs to be told from others, to be read at its ease, and to have what is said of the row beside it.
NARROWEST = 24
READABLE = 30
COMFORTABLE = 40
WIDEST_NOTE = 28
INDENT = 2
# The verdicts that a row's notes do not tell.
WORTH_SAYING = (Verdict.ABSORBED, Verdict.INHERITED, Verdict.AMPLIFIED, Verdict.INTRODUCED, Verdict.MISCALLED)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, how a row's cell reads, whether that is a number.

    `beneath` goes before the cell's text where that stands under the module path, without the heading.
    """

    heading: str
    cell: Callable[[Row], str]
    numeric: bool = False
    beneath: str = ""

    def width(self, rows: Sequence[Row]) -> int:
        """Return the width of the widest cell, the heading included; words wrap where they are many."""
        widest = max([*map(len, self.heading.split("\n")), *(len(self.cell(row)) for row in rows)])
        return widest if self.numeric else min(widest, WIDEST_NOTE)


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns after the module's, which of the rest stand under the path, and the path's width."""

    columns: tuple[Column, ...]
    beneath: tuple[Column, ...]
    path_width: int


# Where the error of a row comes from, each number a PEIR.
RECEIVED = Column(f"received\nPEIR {LOWER}", lambda row: number(row.peir_in), numeric=True)
INTRODUCED = Column(f"introduced\nPEIR {LOWER}", lambda row: number(row.peir_local), numeric=True)
ACCUMULATED = Column(f"accumulated\nPEIR {LOWER}", lambda row: number(row.peir), numeric=True)
VERDICT = Column("verdict", lambda row: verdict_word(row.verdict))
VERDICT_BENEATH = Column("verdict", lambda row: verdict_word(row.verdict) if row.verdict in WORTH_SAYING else "")
# Which sample was the worst, of how many that made the call.
SAMPLE = Column("sample", lambda row: f"{row.sample} of {row.samples}", numeric=True)
OUTPUT = Column("output", lambda row: row.output, beneath="output ")
TYPE = Column("type", lambda row: row.type)


def verdict_word(verdict: Verdict | None) -> str:
    """Return a verdict as people read it."""
    return ABSENT if verdict is None else verdict.value.replace("_", "-")


def plain_table() -> Table:
    """Return an empty table in the one style that all of qtrace's tables have."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")


def rows_tables(chosen: Selection, report: ReportData, *, width: int) -> Iterator[Table]:
    """Yield one table of `chosen`, which are rows of the report, in `width` columns, or two."""
    told = list(_told_apart(report.rows))
    keys = STATISTICS if chosen.sort in STATISTICS else (*STATISTICS, *_beside(chosen.sort))
    statistics = [Column(METRICS[key].heading, METRICS[key].text, numeric=True) for key in keys]
    peir = statistics[STATISTICS.index("peir")]
    origin = [] if report.outcome is Outcome.CLEAN else _origin(chosen)
    if not origin:
        yield _table(chosen, _layout(chosen, told, [VERDICT, *statistics], width))
        return
    rest = [column for column in statistics if column is not peir]
    together = [VERDICT, *rest, *origin]
    if _left(chosen, [*told, *together], width) >= min(_longest(chosen), READABLE):
        yield _table(chosen, _layout(chosen, told, together, width))
        return
    yield _table(chosen, _layout(chosen, told, [VERDICT, *origin], width))
    yield _table(chosen, _layout(chosen, told, statistics, width, says=[OUTPUT]))


def _beside(sort: str) -> tuple[str, ...]:
    return (sort,) if sort in METRICS and sort not in ("received", "introduced") else ()


def _told_apart(rows: Sequence[Row]) -> Iterator[Column]:
    if any(row.samples > 1 or row.sample for row in rows):
        yield SAMPLE
    if any(row.call for row in rows):
        yield Column("call", lambda row: str(row.call), numeric=True)


def _origin(chosen: Selection) -> list[Column]:
    """Return what tells where errors come from, as far as it was measured."""
    measured = [column for column in (RECEIVED, INTRODUCED) if any(column.cell(row) != ABSENT for row in chosen.rows)]
    if not measured:
        return []
    drawn = INTRODUCED if INTRODUCED in measured else ACCUMULATED
    return [*measured, ACCUMULATED, Column("bar", lambda row: bar(row.peir_local if drawn is INTRODUCED else row.peir))]


def _table(chosen: Selection, layout: Layout) -> Table:
    paths = shorten_all(dict.fromkeys(row.module for row in chosen.rows), layout.path_width)
    lines = max(column.heading.count("\n") for column in layout.columns)
    table = plain_table()
    table.add_column("\n" * lines + "module", width=layout.path_width, overflow="fold")
    for column in layout.columns:
        heading = "\n" * (lines - column.heading.count("\n")) + column.heading
        table.add_column(heading, justify="right" if column.numeric else "left", width=column.width(chosen.rows))
    for row in chosen.rows:
        style = _style(row, chosen)
        path = Text(paths[row.module], style=style)
        said = _said(row, layout.beneath)
        beneath = [Padding(Text(said, style="dim"), (0, 0, 0, INDENT), expand=False)] if said else []
        table.add_row(Group(path, *beneath), *(Text(column.cell(row), style=style) for column in layout.columns))
    return table


def _said(row: Row, beneath: Sequence[Column]) -> str:
    """Return what stands under a row's path."""
    return ", ".join(column.beneath + text for column in beneath if (text := column.cell(row)))


def _layout(
    chosen: Selection,
    told: Sequence[Column],
    wanted: Sequence[Column],
    width: int,
    says: Sequence[Column] | None = None,
) -> Layout:
    """Share out the width: numbers first, then a path that can be read, then what else there is to say."""
    remarks = Column("notes", lambda row: ", ".join(notes(row, leap=chosen.leap, largest=chosen.largest)))
    asked = [OUTPUT, remarks] if says is None else says
    extras = [column for column in asked if any(column.cell(row) for row in chosen.rows)]
    longest = _longest(chosen)
    columns = list(wanted)
    # Words go below the path before numbers go, these from the left: PEIR, and what is ranked by, go last.
    while _left(chosen, [*told, *columns], width) < min(longest, NARROWEST) and len(columns) > 1:
        gone = next((column for column in reversed(columns) if not column.numeric), columns[0])
        columns.remove(gone)
        extras = [VERDICT_BENEATH, *extras] if gone is VERDICT else extras
    fixed = [*told, *columns]
    if _left(chosen, [*fixed, *extras], width) < min(longest, COMFORTABLE):
        said = min(max((len(_said(row, extras)) for row in chosen.rows), default=0), WIDEST_NOTE)
        room = _left(chosen, fixed, width)
        path = max(min(longest, max(room, NARROWEST)), min(said + INDENT, room))
        return Layout(tuple(fixed), tuple(extras), path)
    inner = [column for column in extras if column is OUTPUT]
    if says is None and _left(chosen, [*fixed, *extras, TYPE], width) >= longest:
        inner.insert(0, TYPE)
    beside = [*told, *inner, *columns, *(column for column in extras if column is not OUTPUT)]
    return Layout(tuple(beside), (), min(longest, _left(chosen, beside, width)))


def _longest(chosen: Selection) -> int:
    return max([len("module"), *(len(shown(row.module)) for row in chosen.rows)])


def _left(chosen: Selection, columns: Sequence[Column], width: int) -> int:
    """Return what `columns` leave of the width for the path."""
    return width - sum(column.width(chosen.rows) + 1 for column in columns)


def _style(row: Row, chosen: Selection) -> str:
    if row is chosen.leap:
        return "bold red"
    return "yellow" if escapes(row) and row.verdict is not Verdict.UNMATCHED else ""
