"""Which rows a table shows, in which order: the worst first, the two that tell the story always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qtrace.report.leap import execution_order, first_leap
from qtrace.report.metrics import METRICS
from qtrace.report.records import ReportData, Row, Status, Verdict

TOP = 20
UNMEASURED = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH, Status.CONSTANT_REFERENCE)
# Where somebody is to blame, these rows say no more than that.
FOLDED = (Verdict.INHERITED, Verdict.ABSORBED, Verdict.EQUAL, Verdict.LAYOUT)
# What such a row lacks in numbers, it has from elsewhere.
FROM_ELSEWHERE = (Verdict.INHERITED, Verdict.ABSORBED)


@dataclass(frozen=True, slots=True)
class View:
    """What the reader asked for.

    `sort` is a key of `metrics.METRICS`, "module" or "order"; None is the introduced error where it was measured, else
    PEIR. `execution` keeps the rows in execution order whatever they are ranked by; `top` rows are shown, 0 for
    all; None means `TOP` in ranked order and all in execution order. `everything` folds nothing away. `command` is
    what was typed, in words, for the proposals of what to type next.
    """

    sort: str | None = None
    execution: bool = False
    top: int | None = None
    everything: bool = False
    command: tuple[str, ...] = ()

    @property
    def limit(self) -> int:
        """Return how many rows to show; 0 for all."""
        if self.top is not None:
            return self.top
        return 0 if self.everything or self.execution or self.sort == "order" else TOP


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows to show, in order and by which key, how many more there are, and the rows to mark.

    `folded` counts by verdict what is left out because somebody is to blame for it; `rest` what `top` leaves out.
    """

    rows: tuple[Row, ...]
    sort: str
    rest: int
    folded: Counter[Verdict]
    leap: Row | None
    largest: Row | None


def select(report: ReportData, view: View) -> Selection:
    """Return the rows that `view` asks for, and always the first leap's and the largest PEIR's."""
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

    A pair that differs in a way that no number expresses comes before all numbers, one that is equal or has
    no partner after them; among rows that introduce nothing, or of which that was not measured, PEIR decides.
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
    """Tell whether the pair differs in a way that its numbers do not express: shape, NaN, no interval."""
    if row.status is Status.NON_FINITE:
        return row.verdict in (Verdict.NON_FINITE, None)
    return row.status in UNMEASURED and row.verdict is not Verdict.EQUAL
