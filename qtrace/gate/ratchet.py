"""A run's numbers taken into a baseline: what got better tightens it, what got worse is named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qtrace.gate.baseline import FACTOR, SLACK, Baseline, BaselineRow, rounded
from qtrace.gate.environment import fingerprint
from qtrace.gate.reading import column_name
from qtrace.gate.regression import improved, is_better, measured, name_of, regressions
from qtrace.report.records import ReportData


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A baseline with a run taken in, and what that changes.

    `loosened` says, one sentence each, what the new baseline allows and the old one did not: rows that got worse or
    vanished, a larger factor or slack. `tightened` and `appeared` name rows, `kept` counts those whose line stays.
    """

    baseline: Baseline
    loosened: tuple[str, ...] = ()
    tightened: tuple[str, ...] = ()
    appeared: tuple[str, ...] = ()
    kept: int = 0


def update(
    report: ReportData, baseline: Baseline | None = None, *, factor: float | None = None, slack: float | None = None
) -> Update:
    """Return a baseline that holds a report's numbers; `baseline` is the one until now, if any.

    A line stays as it is while its row got neither worse nor better by more than the baseline allows, so that running
    again changes nothing. Whether what is loosened is wanted, the caller decides before writing it. `factor` and
    `slack` are those of the old baseline unless they are given.
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
        loosened=tuple(loosened),
        tightened=tuple(tightened),
        appeared=tuple(appeared) if baseline is not None else (),
        kept=kept,
    )
