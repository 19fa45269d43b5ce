"""Tables of the arguments that differ, and of the inputs of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qtrace.report.columns import METRICS
from qtrace.report.notes import STATUS_WORDS, spec
from qtrace.report.records import Argument, ReportData, Status, TensorSpec
from qtrace.report.table import plain_table
from qtrace.report.text import ABSENT, CUT, bound, count, number, shorten, shorten_all, shown

NUMBER_WIDTH = 9
NARROWEST = 12
TOP = 8
BY = "  by "


def arguments_table(arguments: Sequence[Argument], *, width: int, top: int | None) -> tuple[Table, int]:
    """Return the table in `width` columns, and how many arguments it leaves out.

    An argument that several calls receive in one shape is one line, that of the first call, and `top` lines are shown
    (`TOP` for None). With 0 every argument of every call has its line.
    """
    groups = grouped(arguments) if top != 0 else [[argument] for argument in arguments]
    listed = groups[: top or (TOP if top is None else None)]
    firsts = [group[0] for group in listed]
    columns = [Column(side, firsts) for side in ("reference", "candidate")]
    names = max([len("argument"), *(len(first.argument) for first in firsts)])
    rest = width - names - sum(column.width for column in columns) - NUMBER_WIDTH - len(columns) - 2
    callers = max([len("caller"), *(len(shown(first.caller)) for first in firsts)])
    said = [text for first in firsts for text in (_called(first, shown(first.module)), _sample(first))]
    called = max(map(len, ["called module", *said]))
    beside = called + 1 + callers <= rest
    room = called if beside else min(max(rest, NARROWEST), max(called, callers + len(BY)))
    modules = shorten_all(dict.fromkeys(first.module for first in firsts), room)
    table = plain_table()
    table.add_column("called module", width=room, overflow="fold")
    table.add_column("argument", width=names)
    if beside:
        table.add_column("caller", width=callers)
    for column in columns:
        table.add_column(column.side, width=column.width)
    table.add_column(METRICS["peir"].heading, justify="right", width=NUMBER_WIDTH)
    for group, first in zip(listed, firsts, strict=True):
        lines = [_called(first, modules[first.module])]
        lines += [] if beside else [BY + shorten(first.caller, room - len(BY))]
        lines += [f"  and {count(len(group) - 1, 'more call')}"] if len(group) > 1 else []
        lines += [_sample(first)] if first.samples > 1 else []
        module = Text(lines[0]).append("".join("\n" + line for line in lines[1:]), style="dim")
        cells = [module, Text(first.argument, style="bold"), *([Text(shown(first.caller))] if beside else [])]
        table.add_row(*cells, *(Text(column.cell(first)) for column in columns), Text(_judged(group)))
    return table, len(arguments) - sum(map(len, listed))


class Column:
    """The argument of one side, in separate lines: dtype, shape, range."""

    def __init__(self, side: str, arguments: Sequence[Argument]) -> None:
        self.side = side
        self.width = max([len(side), *(len(line) for one in arguments for line in self.cell(one).split("\n"))])

    def cell(self, argument: Argument) -> str:
        """Return the cell's text."""
        value: TensorSpec | None = getattr(argument, self.side)
        return _described(value)


def grouped(arguments: Sequence[Argument]) -> list[list[Argument]]:
    """Return the arguments in execution order, grouped by name, shape and type."""
    groups: dict[object, list[Argument]] = {}
    for argument in sorted(arguments, key=lambda a: a.order):
        specs = _described(argument.reference), _described(argument.candidate)
        groups.setdefault((argument.argument, argument.status, specs), []).append(argument)
    return list(groups.values())


def _called(argument: Argument, path: str) -> str:
    return f"{path}#{argument.call}" if argument.call else path


def _sample(argument: Argument) -> str:
    """Return the worst sample, and the number of samples in which the argument differs."""
    return f"  sample {argument.sample} of {argument.samples}" if argument.samples > 1 else ""


def _described(value: TensorSpec | None) -> str:
    """Return dtype, shape and range in separate lines, so that they fit a narrow column."""
    if value is None:
        return "not passed"
    lines = spec(value).split(" ") if value.shape is not None else [spec(value)]
    if value.min is not None and value.max is not None:
        low, high = bound(value.min), bound(value.max)
        lines.append(f"all {low}" if low == high else f"{low} … {high}")
    return "\n".join(lines)


def _judged(group: Sequence[Argument]) -> str:
    """Return the largest PEIR of the group, or the reason why there is none."""
    peirs = [argument.peir for argument in group if argument.peir is not None]
    if peirs:
        return number(max(peirs))
    status = group[0].status
    if status in (Status.COMPARED, Status.REFERENCE_ONLY, Status.CANDIDATE_ONLY):
        return ABSENT
    return STATUS_WORDS[status].replace(" ", "\n")


NAME_WIDTH = 24
# The inputs of many samples would fill the screen before any result.
MOST = 20


def inputs(report: ReportData, *, width: int) -> RenderableType | None:
    """Return the inputs' table in `width` columns; None where the report holds none."""
    if not report.inputs:
        return None
    rows = [_cells(entry) for entry in report.inputs[:MOST]]
    headings = ["sample", "input", "type", "min", "max"]
    if len({entry.get("sample", 0) for entry in report.inputs}) == 1:
        headings, rows = headings[1:], [(cells[1:], values) for cells, values in rows]
    table = plain_table()
    left = width
    for place, heading in enumerate(headings):
        column = max(len(heading), *(len(cells[place]) for cells, _ in rows))
        numeric = heading in ("sample", "min", "max")
        table.add_column(heading, width=column, justify="right" if numeric else "left")
        left -= column + 1
    if left >= len("values") and any(values for _, values in rows):
        table.add_column("values", width=min(left, max(len(values) for _, values in rows)))
        rows = [([*cells, _cut(values, left)], "") for cells, values in rows]
    for cells, _ in rows:
        table.add_row(*map(Text, cells))
    if len(report.inputs) <= MOST:
        return table
    return Group(
        table, Text(f"… and {count(len(report.inputs) - MOST, 'more input')}; the report holds all", style="dim")
    )


def _cells(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the cells of an input's row, and its values."""
    value = _spec(entry.get("spec"))
    values = str(entry.get("values") or "").replace("\n", " ")
    return [
        str(entry.get("sample", 0)),
        _name(entry),
        spec(value),
        bound(value.min),
        bound(value.max),
    ], values


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - len(CUT)] + CUT


def _name(entry: Mapping[str, Any]) -> str:
    return shorten(str(entry.get("name") or "input"), NAME_WIDTH)


def _spec(plain: TensorSpec | Mapping[str, Any] | None) -> TensorSpec:
    """Return the spec of a new report unchanged, that of a stored report from its JSON types."""
    if isinstance(plain, TensorSpec):
        return plain
    if plain is None:
        return TensorSpec(type=ABSENT)
    values = dict(plain)
    shape = values.get("shape")
    return TensorSpec(**{**values, "shape": None if shape is None else tuple(shape)})
