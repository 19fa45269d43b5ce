"""Which row of a report first leaps: the place where a reader starts to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtrace.report.records import AGREEING, Row, Verdict

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
    """Tell whether the run took the row's two tensors as the same; a row without a verdict is not."""
    return row.verdict in AGREEING


def escapes(row: Row) -> bool:
    """Tell whether the row differs and no call around it undoes that, as with a scale folded into a weight."""
    return not agrees(row) and row.verdict is not Verdict.ABSORBED


def execution_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows as the reference ran, outputs of one call in their own order."""
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
