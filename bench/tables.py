"""Benchmark rows as a table on the screen and as Markdown."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows; nothing where there are none."""
    if not rows:
        return
    table = Table(title=title)
    for name in columns(rows):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*[text(row.get(name)) for name in columns(rows)])
    Console().print(table)


def markdown(title: str, rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown section."""
    names = columns(rows)
    lines = [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(text(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join([*lines, ""])


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names that any row has, in the order in which they first occur."""
    return list(dict.fromkeys(name for row in rows for name in row))


def text(value: Any) -> str:
    """Return a cell: three significant digits for a float."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
