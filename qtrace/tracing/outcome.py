"""Judges the outcome of a run by the compared calls, the root's outputs and the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qtrace.engine.forcing import OUT
from qtrace.engine.lockstep import CANDIDATE, REFERENCE
from qtrace.engine.lockstep_pass import Options, Pass
from qtrace.engine.model import Model
from qtrace.engine.plan import Plan
from qtrace.numerics.relations import FILL
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import AGREEING, Coverage, Finding, Outcome, Relation, Row, Status, Unmatched, Verdict

NAMES = ("reference", "candidate")


class CallCounts:
    """Adds up the counts of passes; nothing else of a pass is kept."""

    def __init__(self, plan: Plan, reference: Model) -> None:
        self._plan = plan
        self._reference = reference
        # The root's calls, and those that `only` and `skip` leave out, do not count.
        self._counted = plan.chosen - {""}
        self._made: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._alone: Counter[tuple[int, str, str]] = Counter()
        self._compared = 0
        self._unseen = 0
        self._reasons: Counter[str] = Counter()

    def add(self, done: Pass) -> None:
        """Count the calls of a pass that ended normally or early."""
        for side in (REFERENCE, CANDIDATE):
            self._made[side].update(done.calls(side))
        self._alone.update(done.comparison.alone_calls)
        self._compared += done.comparison.compared
        self._reasons.update(done.comparison.reasons)
        for (path, reason), n in done.unseen(REFERENCE).items():
            if path in self._counted:
                self._reasons[reason] += n
                self._unseen += n if reason == "in_thread" else 0

    def coverage(self) -> Coverage:
        """Return how much of the reference was compared."""
        calls = self._unseen + sum(n for path, n in self._made[REFERENCE].items() if path in self._counted)
        reasons = self._reasons.copy()
        alignment = self._plan.alignment
        for path in self._counted & {*alignment.fused, *alignment.split}:
            if not self._runs(alignment.fused.get(path) or alignment.split[path][0]):
                # Neither the partner nor a module around it is ever called: the candidate computes nothing instead.
                continue
            moved = min(reasons["no_partner"], self._made[REFERENCE][path])
            reasons["no_partner"] -= moved
            reasons[alignment.why(path)] += moved
        reasons = +reasons
        unfinished = calls - self._compared - sum(reasons.values())
        if unfinished > 0:
            reasons["unfinished"] += unfinished
        return Coverage(calls, self._compared, dict(sorted(reasons.items())))

    def _runs(self, path: str) -> bool:
        """Return whether a module of the candidate, or one around it except the root, was called."""
        parts = path.split(".")
        return any(self._made[CANDIDATE][".".join(parts[:length])] for length in range(len(parts), 0, -1))

    def unmatched(self) -> Iterator[Unmatched]:
        """Yield the modules with calls that were not compared, and the reference modules without partner."""
        modules = self._reference.modules
        mine, theirs = self._made
        for path in self._plan.alignment.alone:
            if path in self._plan.chosen and mine[path]:
                yield Unmatched(
                    "reference", path, type(modules[path]).__name__, mine[path], self._plan.alignment.why(path)
                )
        called = {key for path, key in self._plan.candidate_keys.items() if theirs[path]}
        for (side, path, kind), calls in self._alone.items():
            reason = "other_place" if side == CANDIDATE or path in called else "partner_not_called"
            yield Unmatched(NAMES[side], path, kind, calls, reason)


# A final output with one of these was not compared, and does not agree.
_UNTOLD = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH)


@dataclass(frozen=True, slots=True)
class SampleOutcome:
    """The judgement of the final outputs, of one sample or of several together (`+`).

    `told` counts the samples with a final output that could be compared. `untold` says whether a final output could not
    be compared. `clean` says whether all agree as closely as possible, `agreeing` whether they agree up to the rounding
    of the coarser dtype. `broken` says whether one differs in a way that accumulated rounding does not explain.
    """

    told: int = 0
    untold: bool = False
    clean: bool = True
    agreeing: bool = True
    broken: bool = False

    def __add__(self, other: SampleOutcome) -> SampleOutcome:
        return SampleOutcome(
            self.told + other.told,
            self.untold or other.untold,
            self.clean and other.clean,
            self.agreeing and other.agreeing,
            self.broken or other.broken,
        )


def sample_outcome(rows: Sequence[Row], floors: Floors) -> SampleOutcome:
    """Judge one sample by its root's rows, as far as both sides return them.

    An output that only one side returns is no difference in what both return: a hand-written wrapper often returns
    plain logits where the reference returns a cache as well. Only where nothing else could be compared does a missing
    output count. A cache that only the model itself reads is no difference either.
    """
    root = [
        row
        for row in rows
        if row.module == "" and row.status is not Status.CANDIDATE_ONLY and row.verdict is not Verdict.ABSORBED
    ]
    there = [row for row in root if row.status is not Status.REFERENCE_ONLY]
    is_absent = not there and bool(root)
    return SampleOutcome(
        told=int(any(row.status not in _UNTOLD for row in there)),
        untold=is_absent or any(row.status in _UNTOLD for row in there),
        clean=not is_absent and all(is_clean(row, floors) for row in there),
        agreeing=not is_absent and all(row.verdict in AGREEING for row in there),
        broken=any(_is_no_drift(row) for row in there),
    )


def absent_outputs(rows: Sequence[Row]) -> str | None:
    """Return a sentence on the final outputs that only the reference returns; None where there are none.

    Outputs of one object, such as the keys and values of a cache, are named by it and counted.
    """
    root = [row for row in rows if row.module == ""]
    absent = Counter(row.output.split(".")[0] for row in root if row.status is Status.REFERENCE_ONLY)
    if not absent or all(row.status in (Status.REFERENCE_ONLY, Status.CANDIDATE_ONLY) for row in root):
        return None
    named = [name if count == 1 else f"{name} ({count} tensors)" for name, count in absent.items()]
    return f"the candidate does not return {', '.join(named)}: compared without"


def outcome(
    end: SampleOutcome, coverage: Coverage, findings: Sequence[Finding], *, samples: int, options: Options
) -> Outcome:
    """Judge a complete run over so many samples; the worst sample decides.

    Agreement up to the rounding of the reference's dtype is clean. A greater difference is a fault where a module is at
    fault, or where the coarser dtype's rounding does not explain it and no search for a faulty module was made;
    otherwise it is drift.
    """
    if end.told < samples and not end.untold:
        return Outcome.INCONCLUSIVE
    if is_too_little(coverage, options):
        return Outcome.INCONCLUSIVE
    if end.clean:
        return Outcome.CLEAN
    if findings:
        return Outcome.FAULT
    if options.local is False and not end.agreeing:
        return Outcome.FAULT
    return Outcome.FAULT if end.untold or end.broken else Outcome.DRIFT


def is_too_little(coverage: Coverage, options: Options) -> bool:
    """Return whether too few of the reference's calls were compared, alone or in one with others, to judge the run."""
    return bool(coverage.reference_calls) and not coverage.accounted >= options.min_coverage


def is_clean(row: Row, floors: Floors) -> bool:
    """Return whether a final output agrees as closely as the reference's own dtype permits."""
    if row.verdict not in AGREEING:
        return False
    relation = row.relation
    if relation is not None and relation.kind == "layout":
        # Inside, a parent undoes such a layout; the caller of the model receives it unchanged. Axes of size 1
        # broadcast.
        return not {"permute", "reshape", "expand", "repeated"} & relation.parameters.keys()
    if relation is not None and relation.kind == "mask":
        return _both_fills(relation)
    dtype = getattr(torch, row.reference.dtype or "", None) if row.reference is not None else None
    if row.peir is None or dtype is None or not dtype.is_floating_point:
        return True
    return row.peir <= floors.of((dtype,), row.order, (row.module, row.call, OUT + row.output))


def _is_no_drift(row: Row) -> bool:
    """Return whether a final output differs in a way that accumulated rounding does not explain."""
    related = row.relation is not None and row.relation.kind in ("layout", "mask")
    return row.verdict is Verdict.NON_FINITE or (row.verdict in AGREEING and related)


def _both_fills(relation: Relation) -> bool:
    return all(fill is None or fill <= FILL for fill in relation.parameters.values())
