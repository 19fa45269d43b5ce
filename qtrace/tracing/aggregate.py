"""Merges the rows of several samples into one: sums are merged, of all other values the worst is kept.

Pure arithmetic on records. No sample hides the result of another: if a ratio of the merged row is within a limit, it is
within the limit in each sample. Only `mean` and `stddev` are computed over all samples together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from qtrace.report.records import AGREEING, Argument, Row, Status, Verdict

T = TypeVar("T", Row, Argument)
E = TypeVar("E")
Choice = Callable[[Iterable[float]], float]

# From the mildest to the worst. Where two tensors differ, numbers rank the statuses of the first group.
_STATUSES = (
    {Status.COMPARED, Status.CONSTANT_REFERENCE},
    {Status.NON_FINITE},
    {Status.SHAPE_MISMATCH},
    {Status.STRUCTURE_MISMATCH},
    {Status.CANDIDATE_ONLY},
    {Status.REFERENCE_ONLY},
)
# These verdicts say how a difference arose; none of them is worse than another.
_WAYS: set[Verdict | None] = {Verdict.INHERITED, Verdict.AMPLIFIED, Verdict.INTRODUCED, Verdict.MISCALLED}
_VERDICTS: tuple[set[Verdict | None], ...] = (
    {Verdict.EQUAL},
    {Verdict.LAYOUT},
    {Verdict.GAIN},
    {Verdict.ABSORBED},
    {None},
    _WAYS,
    {Verdict.NON_FINITE},
    {Verdict.STRUCTURE},
    {Verdict.UNMATCHED},
)


class Aggregate:
    """One row for each output of each call, and one argument for each that differs, over all samples added so far.

    Its size grows with the calls of a sample, not with the number of samples.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, Row] = {}
        self._arguments: dict[Hashable, Argument] = {}

    def add(self, rows: Iterable[Row], arguments: Iterable[Argument]) -> None:
        """Add the rows and arguments of one sample."""
        _fold(self._rows, rows, _row_key, merged)
        _fold(self._arguments, arguments, _argument_key, worse)

    def join(self, other: Aggregate) -> None:
        """Add other samples; where two verdicts say how a difference arose, the one already here is kept."""
        for key, row in other._rows.items():
            self._rows[key] = merged(self._rows[key], row) if key in self._rows else row
        for key, argument in other._arguments.items():
            self._arguments[key] = worse(self._arguments[key], argument) if key in self._arguments else argument

    def rows(self) -> list[Row]:
        """Return the rows in the reference's execution order."""
        return sorted(self._rows.values(), key=lambda row: row.order)

    def arguments(self) -> list[Argument]:
        """Return the arguments that differ in the reference's execution order."""
        return sorted(self._arguments.values(), key=lambda argument: argument.order)


def merged(one: Row, other: Row) -> Row:
    """Return one row for two rows of the same output of the same call in different samples.

    With n, m, s the elements, mean and population stddev of |reference - candidate| in each (Chan, Golub, LeVeque:
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979):

        n = n1 + n2    m = m1 + (m2 - m1) n2 / n    s² = s1² n1 / n + s2² n2 / n + (m2 - m1)² n1 n2 / n²

    `min` is the least, `max`, `mismatch`, `peir_in` and `peir_local` the largest; `sqnr_db`, `cosine` and `rel_l2` are
    each the worst, and None where a sample differs without having such a number. `verdict` is the worst; among verdicts
    that say how a difference arose it is that of `one`. `order` is the later one, so that calls which only one sample
    makes push the others apart. All other values are those of the worse sample: by its status where the two tensors do
    not agree, then by its error, then by `max`; of equals the first one. The error is the PEIR. Where a relation
    excuses the difference, it is the PEIR that remains under the relation; where the reference has no interval, it is
    the relative L2.
    """
    worst = max(one, other, key=_row_badness)
    return replace(
        worst,
        samples=one.samples + other.samples,
        elements=one.elements + other.elements,
        order=max(one.order, other.order),
        verdict=_verdict(one, other, worst),
        sqnr_db=_worst(one, other, "sqnr_db", min),
        cosine=_worst(one, other, "cosine", min),
        rel_l2=_worst(one, other, "rel_l2", max),
        mismatch=_largest(one.mismatch, other.mismatch),
        peir_in=_largest(one.peir_in, other.peir_in),
        peir_local=_largest(one.peir_local, other.peir_local),
        **_spread(one, other),
    )


def worse(one: Argument, other: Argument) -> Argument:
    """Return the argument of the worse sample: by its status, its PEIR, its `max`; of equals the first one's."""
    worst = max(one, other, key=_argument_badness)
    return replace(worst, samples=one.samples + other.samples, order=max(one.order, other.order))


def _fold(known: dict[Hashable, T], new: Iterable[T], key: Callable[[T], Hashable], join: Callable[[T, T], T]) -> None:
    # Each side may call a path in a place of its own. These are two rows of one sample, and stay two.
    seen: Counter[Hashable] = Counter()
    for item in new:
        name = key(item)
        place = (name, seen[name])
        seen[name] += 1
        known[place] = join(known[place], item) if place in known else item


def _row_key(row: Row) -> Hashable:
    return row.module, row.call, row.output, row.status is Status.CANDIDATE_ONLY


def _argument_key(argument: Argument) -> Hashable:
    return argument.module, argument.call, argument.argument


def _row_badness(row: Row) -> tuple[int, float, float, int]:
    error = _error(row)
    if row.verdict in AGREEING:
        # Empty tensors agree without a number; a row with a number says more.
        return 0, -1.0 if error is None else _badness(error), row.max or 0.0, -row.sample
    # NaN at the same places on both sides is no difference; the other elements have their PEIR.
    same = row.status is Status.NON_FINITE and row.non_finite_same
    status = Status.COMPARED if same else row.status
    return _rank(status, _STATUSES), _badness(error), _badness(row.max), -row.sample


def _argument_badness(argument: Argument) -> tuple[int, float, float, int]:
    return _rank(argument.status, _STATUSES), _badness(argument.peir), _badness(argument.max), -argument.sample


def _error(row: Row) -> float | None:
    without_interval = row.peir is None and row.status in (Status.CONSTANT_REFERENCE, Status.NON_FINITE)
    return row.rel_l2 if without_interval else row.error


def _badness(error: float | None) -> float:
    """Return a number that is greater for a worse error; a difference without a number is worse than all others."""
    return math.inf if error is None or math.isnan(error) else error


def _verdict(one: Row, other: Row, worst: Row) -> Verdict | None:
    """Return the worst verdict; where the worst row's verdict says how the difference arose, one that also says so."""
    told = [row.verdict for row in (one, other) if worst.verdict not in _WAYS or row.verdict in _WAYS]
    return max(told, key=lambda verdict: _rank(verdict, _VERDICTS))


def _rank(item: E, groups: Sequence[set[E]]) -> int:
    return next(rank for rank, group in enumerate(groups) if item in group)


def _spread(one: Row, other: Row) -> dict[str, Any]:
    """Return mean to stddev over the elements of both rows; None where a row with elements lacks the number."""
    if not (one.elements and other.elements):
        told = one if one.elements else other
        return {"mean": told.mean, "min": told.min, "max": told.max, "stddev": told.stddev}
    low = None if one.min is None or other.min is None else min(one.min, other.min)
    high = None if one.max is None or other.max is None else max(one.max, other.max)
    mean = stddev = None
    if one.mean is not None and other.mean is not None:
        share, step = other.elements / (one.elements + other.elements), other.mean - one.mean
        mean = one.mean + share * step
        if one.stddev is not None and other.stddev is not None:
            # math.hypot adds the squares without leaving the range of floats.
            parts = (
                one.stddev * math.sqrt(1 - share),
                other.stddev * math.sqrt(share),
                step * math.sqrt(share - share**2),
            )
            stddev = 0.0 if low is not None and low == high else math.hypot(*parts)
    return {"mean": mean, "min": low, "max": high, "stddev": stddev}


def _worst(one: Row, other: Row, name: str, choose: Choice) -> float | None:
    """Return the worse of two numbers; equal tensors may have none, and then the other row's number counts."""
    told: list[float | None] = [getattr(row, name) for row in (one, other) if row.elements and row.max != 0]
    if not told:
        told = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
    numbers = [value for value in told if value is not None and not math.isnan(value)]
    return choose(numbers) if numbers and len(numbers) == len(told) else None


def _largest(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)
