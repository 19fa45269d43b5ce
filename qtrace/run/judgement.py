"""The outcome of a run: judged at the root's outputs and by the findings; too little compared says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qtrace.lockstep.forcing import OUT
from qtrace.passes import Options
from qtrace.records import AGREEING, Coverage, Finding, Outcome, Relation, Row, Status, Verdict
from qtrace.relate import FILL
from qtrace.tolerance import Floors

# A final output with one of these was not compared, and does not agree.
_UNTOLD = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH, Status.REFERENCE_ONLY)


def final(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that the outcome is judged by; one that the candidate gives beside them is no difference."""
    return [row for row in rows if row.module == "" and row.status is not Status.CANDIDATE_ONLY]


def outcome(
    rows: Sequence[Row],
    coverage: Coverage,
    findings: Sequence[Finding],
    *,
    samples: int,
    options: Options,
    floors: Sequence[Floors],
) -> Outcome:
    """Judge a run that came to its end; `floors` are those of each sample.

    Agreeing up to the rounding of the reference's dtype is clean. Beyond that it is a fault where somebody is to
    blame, or where it is more than the coarser dtype's rounding explains and nobody looked; else it is drift.
    """
    root = final(rows)
    told = {row.sample for row in root if row.status not in _UNTOLD}
    if len(told) < samples and not any(row.status in _UNTOLD for row in root):
        return Outcome.INCONCLUSIVE
    if is_too_little(coverage, options):
        return Outcome.INCONCLUSIVE
    if all(is_clean(row, floors[row.sample]) for row in root):
        return Outcome.CLEAN
    if findings:
        return Outcome.FAULT
    if options.local is False and not all(row.verdict in AGREEING for row in root):
        return Outcome.FAULT
    if any(row.status in _UNTOLD or _is_no_drift(row) for row in root):
        return Outcome.FAULT
    return Outcome.DRIFT


def is_too_little(coverage: Coverage, options: Options) -> bool:
    """Return whether too few of the reference's calls were compared to say anything."""
    return bool(coverage.reference_calls) and not coverage.fraction >= options.min_coverage


def is_clean(row: Row, floors: Floors) -> bool:
    """Return whether a final output agrees as closely as the reference's own dtype lets anybody agree with it."""
    if row.verdict not in AGREEING:
        return False
    relation = row.relation
    if relation is not None and relation.kind == "layout":
        # Inside, a parent undoes it; whoever calls this model gets it as it is. Axes of size 1 broadcast away.
        return not {"permute", "reshape", "expand", "repeated"} & relation.parameters.keys()
    if relation is not None and relation.kind == "mask":
        return _both_fills(relation)
    dtype = getattr(torch, row.reference.dtype or "", None) if row.reference is not None else None
    if row.peir is None or dtype is None or not dtype.is_floating_point:
        return True
    return row.peir <= floors.of((dtype,), row.order, (row.module, row.call, OUT + row.output))


def _is_no_drift(row: Row) -> bool:
    """Return whether a final output is off in a way that rounding does not add up to."""
    related = row.relation is not None and row.relation.kind in ("layout", "mask")
    return row.verdict is Verdict.NON_FINITE or (row.verdict in AGREEING and related)


def _both_fills(relation: Relation) -> bool:
    return all(fill is None or fill <= FILL for fill in relation.parameters.values())
