"""The ranked table of rows, fitted to a width.

Numbers and the columns that tell rows apart (sample, call) are never cut. Output path, type and notes have
columns of their own where the width allows; where it does not they stand under the module path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qtrace.records import Row, Verdict
from qtrace.render.leap import agrees
from qtrace.render.metrics import DEFAULT, METRICS, Metric
from qtrace.render.notes import notes
from qtrace.render.paths import shorten_all, shown
from qtrace.render.selection import Selection

NARROWEST = 24
COMFORTABLE = 40
WIDEST_NOTE = 28


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
        widest = max([len(self.heading), *(len(self.cell(row)) for row in rows)])
        return widest if self.numeric else min(widest, WIDEST_NOTE)


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns after the module's, which of the rest stand under the path, and the path's width."""

    columns: tuple[Column, ...]
    beneath: tuple[Column, ...]
    path_width: int


def plain_table() -> Table:
    """Return an empty table in the one style that all of qtrace's tables have."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")


def rows_table(chosen: Selection, rows: Sequence[Row], *, width: int, sort: str = "peir") -> Table:
    """Return the table of `chosen` in `width` columns; `rows` are all of the report's, shown or not."""
    layout = _layout(chosen, rows, width, _metrics(sort))
    paths = shorten_all(dict.fromkeys(row.module for row in chosen.rows), layout.path_width)
    table = plain_table()
    table.add_column("module", width=layout.path_width, overflow="fold")
    for column in layout.columns:
        table.add_column(column.heading, justify="right" if column.numeric else "left", width=column.width(chosen.rows))
    for row in chosen.rows:
        style = _style(row, chosen)
        path = Text(paths[row.module], style=style)
        said = [column.beneath + text for column in layout.beneath if (text := column.cell(row))]
        beneath = [Padding(Text(", ".join(said), style="dim"), (0, 0, 0, 2), expand=False)] if said else []
        table.add_row(Group(path, *beneath), *(Text(column.cell(row), style=style) for column in layout.columns))
    return table


def _metrics(sort: str) -> list[Metric]:
    keys = DEFAULT if sort in DEFAULT or sort not in METRICS else (*DEFAULT, sort)
    return [METRICS[key] for key in keys]


def _numbers(metric: Metric) -> Column:
    return Column(metric.heading, metric.text, numeric=True)


def _layout(chosen: Selection, rows: Sequence[Row], width: int, metrics: Sequence[Metric]) -> Layout:
    """Share out the width: numbers first, then a path that can be read, then what else there is to say."""
    told_apart = []
    if any(row.sample for row in rows):
        told_apart.append(Column("sample", lambda row: str(row.sample), numeric=True))
    if any(row.call for row in rows):
        told_apart.append(Column("call", lambda row: str(row.call), numeric=True))
    output = Column("output", lambda row: row.output, beneath="output ")
    type_ = Column("type", lambda row: row.type)
    remarks = Column("notes", lambda row: ", ".join(notes(row, leap=chosen.leap, largest=chosen.largest)))
    extras = [column for column in (output, remarks) if any(column.cell(row) for row in chosen.rows)]

    def left(columns: Sequence[Column]) -> int:
        return width - sum(column.width(chosen.rows) + 1 for column in columns)

    longest = max([len("module"), *(len(shown(row.module)) for row in chosen.rows)])
    numbers = [_numbers(metric) for metric in metrics]
    while left([*told_apart, *numbers]) < NARROWEST and len(numbers) > 1:
        del numbers[0]
    fixed = [*told_apart, *numbers]
    if left([*fixed, *extras]) < min(longest, COMFORTABLE):
        return Layout(tuple(fixed), tuple(extras), min(longest, max(left(fixed), NARROWEST)))
    inner = [column for column in extras if column is output]
    if left([*fixed, *extras, type_]) >= longest:
        inner.insert(0, type_)
    columns = [*told_apart, *inner, *numbers, *(column for column in extras if column is remarks)]
    return Layout(tuple(columns), (), min(longest, left(columns)))


def _style(row: Row, chosen: Selection) -> str:
    if row is chosen.leap:
        return "bold red"
    return "" if agrees(row) or row.verdict is Verdict.UNMATCHED else "yellow"
