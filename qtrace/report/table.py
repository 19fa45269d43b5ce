"""The table of ranked rows: selects the rows, ranks them, and fits them to a width."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qtrace.report.columns import LOWER, METRICS, STATISTICS, escapes, execution_order, first_leap
from qtrace.report.notes import notes
from qtrace.report.records import Outcome, ReportData, Row, Status, Verdict
from qtrace.report.text import ABSENT, bar, number, shorten_all, shown

TOP = 20
UNMEASURED = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH, Status.CONSTANT_REFERENCE)
# Where a module is at fault, rows with these verdicts add no information.
FOLDED = (Verdict.INHERITED, Verdict.ABSORBED, Verdict.EQUAL, Verdict.LAYOUT)
# Such a row may lack numbers, but its error comes from elsewhere.
FROM_ELSEWHERE = (Verdict.INHERITED, Verdict.ABSORBED)


@dataclass(frozen=True, slots=True)
class View:
    """The options of the reader.

    `sort` is a key of `columns.METRICS`, "module" or "order"; None is the introduced error where it was measured, else
    PEIR. `execution` keeps the rows in execution order whatever they are ranked by. `top` rows are shown, 0 for all;
    None means `TOP` in ranked order and all in execution order. `everything` folds nothing away. `command` holds the
    words of the typed command, for proposals of the next command.
    """

    sort: str | None = None
    execution: bool = False
    top: int | None = None
    everything: bool = False
    command: tuple[str, ...] = ()

    @property
    def limit(self) -> int:
        """Return the number of rows to show; 0 for all."""
        if self.top is not None:
            return self.top
        return 0 if self.everything or self.execution or self.sort == "order" else TOP


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows to show in order, their sort key, the number of further rows, and the rows to mark.

    `folded` counts by verdict the rows that are left out because a module at fault explains them; `rest` counts the
    rows that `top` leaves out.
    """

    rows: tuple[Row, ...]
    sort: str
    rest: int
    folded: Counter[Verdict]
    leap: Row | None
    largest: Row | None


def select(report: ReportData, view: View) -> Selection:
    """Return the rows that `view` selects, and always the rows of the first leap and of the largest PEIR."""
    ordered = execution_order(report.rows)
    found = first_leap(ordered)
    leap = found.row if found else None
    largest = max((r for r in ordered if r.peir), key=lambda row: row.peir or 0.0, default=None)
    always = {id(row) for row in (leap, largest) if row is not None}
    measured = any(row.peir_local is not None for row in ordered)
    sort = view.sort or ("introduced" if measured else "peir")
    ranked = rank(ordered, sort)
    open_ = ranked
    if report.findings and not report.error and view.limit and not view.everything:
        open_ = [row for row in ranked if row.verdict not in FOLDED or id(row) in always]
    kept = {id(row) for row in (open_[: view.limit] if view.limit else open_)} | always
    shown = tuple(row for row in (ordered if view.execution else ranked) if id(row) in kept)
    unfolded = {id(row) for row in open_}
    folded = Counter(row.verdict for row in ordered if row.verdict is not None and id(row) not in unfolded)
    return Selection(shown, sort, len(open_) - len(kept), folded, leap, largest)


def rank(ordered: Sequence[Row], sort: str) -> list[Row]:
    """Return rows worst first by the metric `sort`, ties in execution order (`ordered` is in that order).

    A pair whose difference no number expresses comes before all numbers; an equal pair, or a row without a partner,
    comes after them. Among rows without an introduced error, or where it was not measured, PEIR decides.
    """
    if sort == "order":
        return list(ordered)
    if sort == "module":
        return sorted(ordered, key=lambda row: (row.module, row.call))
    metric = METRICS[sort]
    introduced = sort == "introduced"

    def key(row: Row) -> tuple[int, float, float]:
        badness = metric.badness(row)
        then = -(row.peir or 0.0) if introduced and not row.peir_local else 0.0
        beyond = beyond_numbers(row) and not (introduced and row.verdict in FROM_ELSEWHERE)
        if beyond and (badness is None or row.status is Status.NON_FINITE):
            return 0, -(badness or 0.0), then
        return (2, 0.0, then) if badness is None else (1, -badness, then)

    return sorted(ordered, key=key)


def beyond_numbers(row: Row) -> bool:
    """Return whether the pair differs in a way that its numbers do not express: shape, NaN, no interval."""
    if row.status is Status.NON_FINITE:
        return row.verdict in (Verdict.NON_FINITE, None)
    return row.status in UNMEASURED and row.verdict is not Verdict.EQUAL


# The widths that a path needs to be distinguishable, to be readable, and to have the row's notes beside it.
NARROWEST = 24
READABLE = 30
COMFORTABLE = 40
WIDEST_NOTE = 28
INDENT = 2
# The verdicts that a row's notes do not state.
WORTH_SAYING = (Verdict.ABSORBED, Verdict.INHERITED, Verdict.AMPLIFIED, Verdict.INTRODUCED, Verdict.MISCALLED)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, the text of a row's cell, whether this is a number.

    `beneath` precedes the cell's text where the text stands under the module path, without the heading.
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
    """The columns after the module's column, the columns that stand under the path, and the path's width."""

    columns: tuple[Column, ...]
    beneath: tuple[Column, ...]
    path_width: int


# The origin of a row's error; each number is a PEIR.
RECEIVED = Column(f"received\nPEIR {LOWER}", lambda row: number(row.peir_in), numeric=True)
INTRODUCED = Column(f"introduced\nPEIR {LOWER}", lambda row: number(row.peir_local), numeric=True)
ACCUMULATED = Column(f"accumulated\nPEIR {LOWER}", lambda row: number(row.peir), numeric=True)
VERDICT = Column("verdict", lambda row: verdict_word(row.verdict))
VERDICT_BENEATH = Column("verdict", lambda row: verdict_word(row.verdict) if row.verdict in WORTH_SAYING else "")
# The worst sample, and the number of samples that made the call.
SAMPLE = Column("sample", lambda row: f"{row.sample} of {row.samples}", numeric=True)
OUTPUT = Column("output", lambda row: row.output, beneath="output ")
TYPE = Column("type", lambda row: row.type)


def verdict_word(verdict: Verdict | None) -> str:
    """Return a verdict as text for users."""
    return ABSENT if verdict is None else verdict.value.replace("_", "-")


def plain_table() -> Table:
    """Return an empty table in the common style of qtrace's tables."""
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
    """Return the columns for the origin of errors, as far as it was measured."""
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
    """Return the text under a row's path."""
    return ", ".join(column.beneath + text for column in beneath if (text := column.cell(row)))


def _layout(
    chosen: Selection,
    told: Sequence[Column],
    wanted: Sequence[Column],
    width: int,
    says: Sequence[Column] | None = None,
) -> Layout:
    """Distribute the width: numbers first, then a readable path, then the notes."""
    remarks = Column("notes", lambda row: ", ".join(notes(row, leap=chosen.leap, largest=chosen.largest)))
    asked = [OUTPUT, remarks] if says is None else says
    extras = [column for column in asked if any(column.cell(row) for row in chosen.rows)]
    longest = _longest(chosen)
    columns = list(wanted)
    # Words move below the path before numbers are dropped; numbers go from the left: PEIR and the sort key last.
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
    """Return the width that `columns` leave for the path."""
    return width - sum(column.width(chosen.rows) + 1 for column in columns)


def _style(row: Row, chosen: Selection) -> str:
    if row is chosen.leap:
        return "bold red"
    return "yellow" if escapes(row) and row.verdict is not Verdict.UNMATCHED else ""
