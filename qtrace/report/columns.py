"""The numbers of a row that a table can show and sort by, and the row at which an error first leaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qtrace.errors import UsageError, did_you_mean
from qtrace.report.records import AGREEING, Row, Verdict
from qtrace.report.text import cosine, decibels, number

LOWER = "↓"
HIGHER = "↑"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a `Row`: the field that holds it, the heading in tables, the better direction.

    `marked` is False for statistics of |reference - candidate|, which the table's legend explains.
    """

    field: str
    header: str
    better: str = LOWER
    marked: bool = True
    format: Callable[[float | None], str] = number

    @property
    def heading(self) -> str:
        """Return the column's heading, with the better direction."""
        return f"{self.header} {self.better}" if self.marked else self.header

    def of(self, row: Row) -> float | None:
        """Return this number of `row`."""
        value: float | None = getattr(row, self.field)
        return value

    def text(self, row: Row) -> str:
        """Return this number of `row` as a table shows it."""
        return self.format(self.of(row))

    def badness(self, row: Row) -> float | None:
        """Return a number that is greater for a worse row, or None where there is none."""
        value = self.of(row)
        if value is None:
            return None
        return value if self.better is LOWER else -value


METRICS: dict[str, Metric] = {
    "mean": Metric("mean", "mean", marked=False),
    "min": Metric("min", "min", marked=False),
    "max": Metric("max", "max", marked=False),
    "stddev": Metric("stddev", "stddev", marked=False),
    "peir": Metric("peir", "PEIR"),
    "sqnr": Metric("sqnr_db", "SQNR dB", HIGHER, format=decibels),
    "cosine": Metric("cosine", "cosine", HIGHER, format=cosine),
    "rel_l2": Metric("rel_l2", "rel L2"),
    "mismatch": Metric("mismatch", "mismatch"),
    "peir_related": Metric("peir_related", "PEIR rel."),
    "received": Metric("peir_in", "received"),
    "introduced": Metric("peir_local", "introduced"),
}
# The users' names of metrics, and the fields of the report.
ALIASES = {"accumulated": "peir", "peir_in": "received", "peir_local": "introduced"}
# On a very narrow terminal, PEIR and then the sort key are the last columns to be dropped.
STATISTICS = ("mean", "min", "max", "stddev", "peir")
SORT_KEYS = (*METRICS, *ALIASES, "module", "order")


def sort_key(key: str) -> str:
    """Return the canonical name of a sort key; raises `UsageError`, naming similar keys, for an unknown key."""
    if key not in SORT_KEYS:
        raise UsageError(f"--sort {key!r} is no column of the table; {did_you_mean(key, SORT_KEYS)}")
    return ALIASES.get(key, key)


LEAP = 100.0


@dataclass(frozen=True, slots=True)
class Leap:
    """The row that leaps, and the largest PEIR before it (None where it is the first row with one)."""

    row: Row
    before: float | None


def error_of(row: Row) -> float | None:
    """Return the PEIR that a row is judged by: what remains under its verified relation, else the raw one."""
    return row.peir if row.peir_related is None else row.peir_related


def agrees(row: Row) -> bool:
    """Return whether the run judged the row's two tensors as the same; False for a row without a verdict."""
    return row.verdict in AGREEING


def escapes(row: Row) -> bool:
    """Return whether the row differs and no call around it undoes this, as with a scale folded into a weight."""
    return not agrees(row) and row.verdict is not Verdict.ABSORBED


def execution_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in the reference's execution order, outputs of one call in their own order."""
    return sorted(rows, key=lambda row: row.order)


def first_leap(rows: Sequence[Row]) -> Leap | None:
    """Return the first row in execution order that differs and has a PEIR >= 100 × the largest one before it.

    Rows that an enclosing call undoes neither leap nor count as seen.
    """
    largest: float | None = None
    for row in execution_order(rows):
        error = error_of(row)
        if error is None or row.verdict is Verdict.ABSORBED:
            continue
        if escapes(row) and error >= LEAP * (largest or 0.0):
            return Leap(row, largest)
        largest = max(largest or 0.0, error)
    return None
