"""What people look at today, each as a rule that names one module from the rows of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qtrace.report.records import Row

LEAP = 100.0
THRESHOLD = 1e-3
# Below this a PEIR of float32 is rounding noise, and 100 times nothing is no leap.
_FLOOR = 1e-8


def largest_peir(rows: Sequence[Row]) -> str | None:
    """Return the module of the row with the largest PEIR, the first of these; None where no row differs."""
    worst = max((row for row in _executed(rows)), key=_peir, default=None)
    return worst.module if worst is not None and _peir(worst) > 0 else None


def first_leap(rows: Sequence[Row]) -> str | None:
    """Return the module whose PEIR is at least 100 times the PEIR of the row before it."""
    before = _FLOOR
    for row in _executed(rows):
        if _peir(row) >= LEAP * before:
            return row.module
        before = max(_peir(row), _FLOOR)
    return None


def first_over(rows: Sequence[Row]) -> str | None:
    """Return the first module in execution order with a PEIR over 1e-3."""
    return next((row.module for row in _executed(rows) if _peir(row) > THRESHOLD), None)


HEURISTICS: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "largest PEIR": largest_peir,
    "first leap x100": first_leap,
    "first over 1e-3": first_over,
}


def _executed(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.sample, row.order))


def _peir(row: Row) -> float:
    return row.peir or 0.0
