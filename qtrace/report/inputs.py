"""What the models were run on: each input's name, shape, dtype, range and first values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from qtrace.report.notes import spec
from qtrace.report.numbers import ABSENT, bound, count
from qtrace.report.paths import CUT, shorten
from qtrace.report.records import ReportData, TensorSpec
from qtrace.report.table import plain_table

NAME_WIDTH = 24
# What many samples hold would fill the screen before anything is said of them.
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
    """Return the spec of a fresh report as it is, that of a stored one from its JSON types."""
    if isinstance(plain, TensorSpec):
        return plain
    if plain is None:
        return TensorSpec(type=ABSENT)
    values = dict(plain)
    shape = values.get("shape")
    return TensorSpec(**{**values, "shape": None if shape is None else tuple(shape)})
