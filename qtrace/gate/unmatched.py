"""Calls and outputs that only one side has: each is a violation, unless a policy allows it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from qtrace.gate.cause import Causes
from qtrace.patterns import matches
from qtrace.report.records import ReportData, Row, Status, Violation

ALONE = (Status.REFERENCE_ONLY, Status.CANDIDATE_ONLY)


def unmatched(report: ReportData, allowed: Sequence[str], causes: Causes) -> Iterator[Violation]:
    """Yield a violation for each module with a call, or an output, that only one side has.

    `allowed` are globs over the modules that may. What the candidate returns beside the reference's outputs is no call
    that was not compared, and none either.
    """
    reasons = {(one.side, one.module): one.reason.replace("_", " ") for one in report.unmatched}
    with_reference = {(row.module, row.call) for row in report.rows if row.status is not Status.CANDIDATE_ONLY}
    alone: dict[tuple[str, Status], list[Row]] = defaultdict(list)
    for row in report.rows:
        further = row.status is Status.CANDIDATE_ONLY and (row.module, row.call) in with_reference
        if row.status in ALONE and not further and not _is_any(allowed, row.module):
            alone[row.module, row.status].append(row)
    for (module, status), rows in alone.items():
        side = "reference" if status is Status.REFERENCE_ONLY else "candidate"
        why = reasons.get((side, module), "no counterpart")
        first, amount = rows[0], len(rows)
        yield Violation(
            module=module,
            call=first.call,
            output=first.output,
            sample=first.sample,
            column="unmatched",
            rule="allow_unmatched",
            reason=f"only in the {side}: {amount} output{'' if amount == 1 else 's'}, {why}",
            severity=math.inf,
            finding=causes.of(module, first.order),
        )


def needless(report: ReportData, allowed: Sequence[str]) -> Iterator[str]:
    """Yield, in words, the globs that allow what is no longer there."""
    alone = {row.module for row in report.rows if row.status in ALONE} | {one.module for one in report.unmatched}
    for pattern in allowed:
        if not any(matches(pattern, module) for module in alone):
            yield f"allow_unmatched {pattern} is not needed: every call of it was compared"


def _is_any(patterns: Sequence[str], module: str) -> bool:
    return any(matches(pattern, module) for pattern in patterns)
