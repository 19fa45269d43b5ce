"""The numbers of a row that a table can show and sort by, each with the direction in which it is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qtrace.errors import UsageError, did_you_mean
from qtrace.report.numbers import cosine, decibels, number
from qtrace.report.records import Row

LOWER = "↓"
HIGHER = "↑"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a `Row`: the field that holds it, the header that people see, the better direction.

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
# What people call a metric, and what its field is called in the report.
ALIASES = {"accumulated": "peir", "peir_in": "received", "peir_local": "introduced"}
# PEIR, and behind it what the table is sorted by, are the last to go where a terminal is very narrow.
STATISTICS = ("mean", "min", "max", "stddev", "peir")
SORT_KEYS = (*METRICS, *ALIASES, "module", "order")


def sort_key(key: str) -> str:
    """Return the one name of what a table is to be sorted by; raises `UsageError`, naming near ones, for no such."""
    if key not in SORT_KEYS:
        raise UsageError(f"--sort {key!r} is no column of the table; {did_you_mean(key, SORT_KEYS)}")
    return ALIASES.get(key, key)
