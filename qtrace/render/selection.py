"""Which rows a table shows, in which order: the worst first, the two that tell the story always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtrace.records import Row, Status, Verdict
from qtrace.render.leap import execution_order, first_leap
from qtrace.render.metrics import METRICS

TOP = 20
UNMEASURED = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH, Status.CONSTANT_REFERENCE)


@dataclass(frozen=True, slots=True)
class View:
    """What the reader asked for.

    `sort` is a key of `metrics.SORT_KEYS`; `execution` keeps the rows in execution order whatever they are
    ranked by; `top` rows are shown, 0 for all. None means `TOP` in ranked order and all in execution order.
    """

    sort: str = "peir"
    execution: bool = False
    top: int | None = None

    @property
    def limit(self) -> int:
        """Return how many rows to show; 0 for all."""
        if self.top is not None:
            return self.top
        return 0 if self.execution or self.sort == "order" else TOP


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows to show, in order, how many more there are, and the rows to mark."""

    rows: tuple[Row, ...]
    rest: int
    leap: Row | None
    largest: Row | None


def select(rows: Sequence[Row], view: View) -> Selection:
    """Return the rows that `view` asks for, and always the first leap's and the largest PEIR's."""
    ordered = execution_order(rows)
    found = first_leap(ordered)
    leap = found.row if found else None
    largest = max((r for r in ordered if r.peir), key=lambda row: row.peir or 0.0, default=None)
    ranked = rank(ordered, view.sort)
    kept = {id(row) for row in (ranked[: view.limit] if view.limit else ranked)}
    kept |= {id(row) for row in (leap, largest) if row is not None}
    source = ordered if view.execution else ranked
    return Selection(tuple(row for row in source if id(row) in kept), len(ordered) - len(kept), leap, largest)


def rank(ordered: Sequence[Row], sort: str) -> list[Row]:
    """Return rows worst first by the metric `sort`, ties in execution order (`ordered` is in that order).

    A pair that differs in a way that no number expresses comes before all numbers, one that is equal or has
    no partner after them.
    """
    if sort == "order":
        return list(ordered)
    if sort == "module":
        return sorted(ordered, key=lambda row: (row.module, row.call))
    metric = METRICS[sort]

    def key(row: Row) -> tuple[int, float]:
        badness = metric.badness(row)
        if beyond_numbers(row) and (badness is None or row.status is Status.NON_FINITE):
            return 0, -(badness or 0.0)
        return (2, 0.0) if badness is None else (1, -badness)

    return sorted(ordered, key=key)


def beyond_numbers(row: Row) -> bool:
    """Tell whether the pair differs in a way that its numbers do not express: shape, NaN, no interval."""
    if row.status is Status.NON_FINITE:
        return row.verdict in (Verdict.NON_FINITE, None)
    return row.status in UNMEASURED and row.verdict is not Verdict.EQUAL
