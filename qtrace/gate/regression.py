"""Judges a report by a baseline: rows that got worse, vanished or appeared; and tightens a baseline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qtrace.gate.baseline import FACTOR, SLACK, Baseline, BaselineRow, Key, fingerprint, rounded
from qtrace.gate.limits import Context, Limit, column_name, error_of, has_integers, is_excused, numberless
from qtrace.gate.policy import Causes, LimitResults
from qtrace.patterns import ROOT
from qtrace.report.records import BaselineChange, ReportData, Row, Status, Verdict, Violation

RULE = "baseline"
NAMED = 5
# From the mildest to the worst; numbers do not measure the statuses after the first two.
_STATUSES = tuple(Status)
_TOLD = (Status.COMPARED, Status.CONSTANT_REFERENCE)


@dataclass(frozen=True, slots=True)
class RegressedColumn:
    """One way in which a row is worse than its line: the column, its number, the permitted and the former number."""

    column: str
    observed: float | None
    limit: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """The numbers of one output of one call, and the row they come from: of several, the first of the worst."""

    line: BaselineRow
    row: Row


def measured(report: ReportData) -> dict[Key, MeasuredRow]:
    """Return a report's numbers, unrounded, by the key of their row."""
    found: dict[Key, MeasuredRow] = {}
    named = Context.of(report).named
    for row in report.rows:
        line = _line(row, named)
        before = found.get(line.key)
        if before is None:
            found[line.key] = MeasuredRow(line, row)
        else:
            both = _worst(before.line, line)
            found[line.key] = MeasuredRow(both, before.row if both == before.line else row)
    return found


def judge_by_baseline(report: ReportData, baseline: Baseline, *, strict: bool = False) -> LimitResults:
    """Judge a report by a baseline; rows whose difference is absorbed count only with `strict`."""
    now, then = measured(report), {row.key: row for row in baseline.rows}
    causes, judged = Causes(report), LimitResults()
    for key, old in then.items():
        new = now.get(key)
        if new is None:
            judged.violations.append(_vanished(old, causes))
            continue
        row = new.row
        excused = is_excused(row, strict=strict)
        found = list(regressions(old, new.line, baseline))
        # The line of an output that could not be compared has no number that could get worse.
        judged.rows += bool(found) or not _is_untold(old)
        for worse in found:
            (judged.absorbed if excused else judged.violations).append(
                Violation(
                    module=row.module,
                    call=row.call,
                    output=row.output,
                    sample=row.sample,
                    column=worse.column,
                    rule=RULE,
                    observed=worse.observed,
                    limit=worse.limit,
                    reason=worse.reason,
                    severity=_severity(worse),
                    finding=causes.of(row.module, row.order),
                )
            )
    appeared = [key for key in now if key not in then]
    better = [key for key, new in now.items() if key in then and is_better(then[key], new.line, baseline)]
    judged.notes += _news(appeared, better)
    judged.inconclusive = not judged.rows
    return judged


def regressions(old: BaselineRow, new: BaselineRow, baseline: Baseline) -> Iterator[RegressedColumn]:
    """Yield the ways in which a row is worse than its line by more than noise and the baseline's allowance."""
    if new.status not in _TOLD and new.status is not old.status:
        reason = f"{_words(new.status)}, and was {_words(old.status)} in the baseline"
        yield RegressedColumn("status", None, None, reason)
        return
    if _is_untold(old):
        return
    if new.mismatch is not None or old.mismatch is not None:
        yield from _worse("mismatch", old.mismatch, new.mismatch, 0.0, baseline)
    error, floor = _error(new), old.floor or 0.0
    if error is not None and error <= floor:
        return
    if old.peir is not None or new.peir is not None:
        worse = list(_worse("peir", old.peir, new.peir, floor, baseline))
        yield from worse
        if worse:
            return
    # Beside a PEIR, a relative L2 without an earlier number cannot be judged.
    if old.rel_l2 is not None or (new.rel_l2 is not None and old.peir is None and new.peir is None):
        yield from _worse("rel_l2", old.rel_l2, new.rel_l2, floor, baseline)
    if old.max is not None or new.max is not None:
        yield from _worse("max", old.max, new.max, 0.0, baseline)


def is_better(old: BaselineRow, new: BaselineRow, baseline: Baseline) -> bool:
    """Return whether a row has improved by more than the baseline would allow it to get worse."""
    return (old.status not in _TOLD and new.status in _TOLD) or bool(improved(old, new, baseline))


def improved(old: BaselineRow, new: BaselineRow, baseline: Baseline) -> dict[str, Any]:
    """Return the numbers of a row that may replace those in its line; noise is no improvement."""
    if old.status not in _TOLD or new.status not in _TOLD:
        return {}
    found: dict[str, Any] = {}
    if _is_less(old.mismatch, new.mismatch, (0.0, 0.0), baseline):
        found["mismatch"] = new.mismatch
    if _is_less(old.peir, new.peir, (old.floor or 0.0, new.floor or 0.0), baseline):
        found |= {"peir": new.peir, "floor": new.floor}
        if old.rel_l2 is not None and new.rel_l2 is not None:
            # The floor may be lower now, and the run must still keep its own new line.
            found["rel_l2"] = max(old.rel_l2, new.rel_l2)
    if _is_less(old.rel_l2, new.rel_l2, (old.floor or 0.0, new.floor or 0.0), baseline):
        found["rel_l2"] = new.rel_l2
    if _is_less(old.max, new.max, (0.0, 0.0), baseline):
        found["max"] = new.max
    return found


def _worse(
    column: str, old: float | None, new: float | None, floor: float, baseline: Baseline
) -> Iterator[RegressedColumn]:
    limit = floor if old is None else _allowed(old, floor, baseline)
    was = f"was {old:.3g} in the baseline" if old is not None else "the baseline has no number for it"
    if new is None or math.isnan(new):
        yield RegressedColumn(column, None, limit, f"no number, and {was}")
    elif not new <= limit:
        yield RegressedColumn(column, new, limit, was + (f", now {new / old:.4g} times that" if old else ""))


def _allowed(old: float, floor: float, baseline: Baseline) -> float:
    return max(floor, baseline.factor * old + baseline.slack)


def _is_less(old: float | None, new: float | None, floors: tuple[float, float], baseline: Baseline) -> bool:
    if old is None or new is None:
        return False
    # A number that is noise already may only reach its floor.
    before = floors[0] if old <= floors[0] else _allowed(old, floors[0], baseline)
    after = floors[1] if new <= floors[1] else _allowed(new, floors[1], baseline)
    return after < before and baseline.factor * after <= before


def _severity(worse: RegressedColumn) -> float:
    if worse.observed is None or worse.limit is None:
        return math.inf
    return Limit(f"max_{worse.column}", worse.limit, RULE).severity(worse.observed)


def _is_untold(line: BaselineRow) -> bool:
    """Return whether a line is of an output that could not be compared; a line beside such a call has numbers."""
    return line.status not in _TOLD and _error(line) is None


def _error(line: BaselineRow) -> float | None:
    return line.peir if line.peir is not None else line.rel_l2


def _line(row: Row, named: Collection[str]) -> BaselineRow:
    """Return a row's numbers; none where no number measures the distance of its tensors."""
    untold = numberless(row) is not None
    told = row.status is Status.NON_FINITE and not untold
    line = BaselineRow(
        module=row.module,
        call=row.call,
        output=row.output,
        status=Status.COMPARED if told else row.status,
        absorbed=row.verdict is Verdict.ABSORBED,
    )
    if untold:
        return line
    peir, rel_l2 = error_of(row, named), row.rel_l2
    return dataclasses.replace(
        line,
        peir=peir,
        rel_l2=rel_l2,
        max=row.max if peir is None and rel_l2 is None else None,
        mismatch=row.mismatch if has_integers(row) else None,
        floor=row.floor,
    )


def _worst(one: BaselineRow, other: BaselineRow) -> BaselineRow:
    """Return the worst of two samples' numbers, column by column."""
    largest: dict[str, Any] = {
        name: max((value for value in (getattr(one, name), getattr(other, name)) if value is not None), default=None)
        for name in ("peir", "rel_l2", "max", "mismatch", "floor")
    }
    status = max(one.status, other.status, key=_STATUSES.index)
    return dataclasses.replace(one, status=status, absorbed=one.absorbed and other.absorbed, **largest)


def _vanished(old: BaselineRow, causes: Causes) -> Violation:
    return Violation(
        module=old.module,
        call=old.call,
        output=old.output,
        column="missing",
        rule=RULE,
        reason="the baseline has this row, and the run has not",
        severity=math.inf,
        finding=causes.of(old.module),
    )


def _news(appeared: list[Key], better: list[Key]) -> Iterator[str]:
    if appeared:
        yield f"the baseline does not know {_named(appeared)}: not judged; --update-baseline takes them in"
    if better:
        yield f"improved enough to tighten the baseline: {_named(better)}; --update-baseline does"


def _named(keys: Iterable[Key]) -> str:
    names = [name_of(key) for key in keys]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def name_of(key: Key) -> str:
    """Return a row's name for users.

    >>> name_of(("layers.0", 1, "hidden")), name_of(("", 0, ""))
    ('layers.0#1 output hidden', '<root>')
    """
    module, call, output = key
    return (module or ROOT) + (f"#{call}" if call else "") + (f" output {output}" if output else "")


def _words(status: Status) -> str:
    return status.value.replace("_", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(BaselineChange):
    """A baseline that includes a run, and the changes that this makes."""

    baseline: Baseline


def update(
    report: ReportData, baseline: Baseline | None = None, *, factor: float | None = None, slack: float | None = None
) -> Update:
    """Return a baseline that holds a report's numbers; `baseline` is the old one, if any.

    A line stays unchanged while its row got neither worse nor better by more than the baseline allows, so that running
    again changes nothing. The caller decides whether loosened lines are wanted before writing the baseline. `factor`
    and `slack` are those of the old baseline unless they are given.
    """
    old = baseline if baseline is not None else Baseline(rows=())
    new_factor = factor if factor is not None else old.factor if baseline is not None else FACTOR
    new_slack = slack if slack is not None else old.slack if baseline is not None else SLACK
    now, then = measured(report), {row.key: row for row in old.rows}
    rows: list[BaselineRow] = []
    loosened: list[str] = []
    if baseline is not None:
        loosened += [
            f"the {name} grows from {before:g} to {after:g}"
            for name, before, after in (("factor", old.factor, new_factor), ("slack", old.slack, new_slack))
            if after > before
        ]
    tightened, appeared, kept = [], [], 0
    for key, found in now.items():
        line = then.get(key)
        worse = list(regressions(line, found.line, old)) if line is not None else []
        if line is None:
            appeared.append(name_of(key))
            rows.append(rounded(found.line))
        elif worse:
            loosened.append(f"{name_of(key)}: {column_name(worse[0].column)} {worse[0].reason}")
            rows.append(rounded(found.line))
        elif is_better(line, found.line, old):
            tightened.append(name_of(key))
            changes = improved(line, found.line, old)
            rows.append(rounded(dataclasses.replace(line, **changes) if changes else found.line))
        else:
            rows.append(line)
            kept += 1
    loosened += [f"{name_of(key)}: the run has no such row" for key in then if key not in now]
    made = Baseline(
        rows=tuple(rows), environment=fingerprint(report), factor=new_factor, slack=new_slack, source=old.source
    )
    return Update(
        baseline=made,
        rows=len(rows),
        loosened=tuple(loosened),
        tightened=tuple(tightened),
        appeared=tuple(appeared) if baseline is not None else (),
        kept=kept,
    )
