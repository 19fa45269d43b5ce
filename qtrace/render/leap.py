"""Which row of a report first leaps: the place where a reader starts to look."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from qtrace.records import Row, Verdict

LEAP = 100.0
DISAGREEING = (None, Verdict.GAIN, Verdict.DIFFERS, Verdict.NON_FINITE, Verdict.STRUCTURE, Verdict.UNMATCHED)


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
    return row.verdict not in DISAGREEING


def execution_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows as the reference ran: sample by sample, outputs of one call in their own order."""
    return sorted(rows, key=lambda row: (row.sample, row.order))


def first_leap(rows: Sequence[Row]) -> Leap | None:
    """Return the first row in execution order that differs and has a PEIR >= 100 × the largest one before it.

    Rows that an enclosing call undoes (its own output agrees again, as with a scale folded into a weight)
    neither leap nor count as seen.
    """
    ordered = execution_order(rows)
    escapes = Escapes(ordered)
    largest: float | None = None
    for position, row in enumerate(ordered):
        error = error_of(row)
        if error is None or not (agrees(row) or escapes(position)):
            continue
        if not agrees(row) and error >= LEAP * (largest or 0.0):
            return Leap(row, largest)
        largest = max(largest or 0.0, error)
    return None


class Escapes:
    """Tells for a row, by its place in execution order, whether its difference leaves the calls around it."""

    def __init__(self, ordered: Sequence[Row]) -> None:
        self._ordered = ordered
        self._places: dict[tuple[int, str], list[int]] = {}
        for position, row in enumerate(ordered):
            self._places.setdefault((row.sample, row.module), []).append(position)

    def __call__(self, position: int) -> bool:
        """Return False where the output of a call around `ordered[position]` agrees again."""
        row = self._ordered[position]
        return not any(self._agrees_after(position, row.sample, path) for path in _enclosing(row.module))

    def _agrees_after(self, position: int, sample: int, path: str) -> bool:
        places = self._places.get((sample, path), [])
        start = bisect.bisect_right(places, position)
        if start == len(places):
            return False
        order = self._ordered[places[start]].order
        rows = (self._ordered[places[n]] for n in range(start, len(places)))
        return all(agrees(row) for row in itertools.takewhile(lambda row: row.order == order, rows))


def _enclosing(path: str) -> list[str]:
    """Return the paths of the modules around `path`, nearest first, the root ("") last.

    >>> _enclosing("layers.0.mlp")
    ['layers.0', 'layers', '']
    """
    components = path.split(".") if path else []
    return [".".join(components[:n]) for n in range(len(components) - 1, -1, -1)]
