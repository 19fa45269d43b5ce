"""The gate's verdict on a report, by its policy, its baseline, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qtrace.errors import UsageError
from qtrace.gate.baseline import Baseline, differences
from qtrace.gate.policy import check, judge_by_policy, limits_rows, of_run
from qtrace.gate.regression import judge_by_baseline
from qtrace.report.records import GateVerdict, Outcome, ReportData, Violation

if TYPE_CHECKING:
    from qtrace.config import Policy


def judge(
    report: ReportData, policy: Policy | None = None, baseline: Baseline | None = None, *, source: str = ""
) -> GateVerdict:
    """Return the verdict on a report by a policy, by a baseline, or by both.

    It passes where no limit is violated, enough was compared, and, if rows are limited, at least one row was judged.

    Args:
        report: from a run that has just ended, or from a file.
        policy: limits on rows and on the run; with its `strict`, absorbed rows are also judged by the baseline.
        baseline: an earlier run's numbers, which must not get worse.
        source: the name of policy and baseline for a reader; by default the baseline's file.

    Raises:
        UsageError: neither policy nor baseline was given, the policy limits nothing, or a pattern of it matches no
            module.
    """
    if policy is None and baseline is None:
        raise UsageError("there is nothing to check against; give a policy or a baseline")
    if policy is not None and baseline is None:
        check(policy)
    parts = []
    if policy is not None:
        parts.append(judge_by_policy(report, policy))
    if baseline is not None:
        parts.append(judge_by_baseline(report, baseline, strict=policy is not None and policy.strict))
    if report.error is not None:
        parts[0].violations.append(of_run("missing", "complete run", f"the run ended early: {report.error}"))
    violations = _sorted(report, [one for part in parts for one in part.violations])
    inconclusive = report.outcome is Outcome.INCONCLUSIVE or any(part.inconclusive for part in parts)
    judged = max(part.rows for part in parts)
    limited = baseline is not None or (policy is not None and limits_rows(policy))
    passed = not violations and not inconclusive and (judged > 0 or not limited)
    notes = [*_left_out(report), *(note for part in parts for note in part.notes)]
    if passed and report.outcome is Outcome.FAULT:
        notes.append("it passes although the outcome is fault; `fail_on: [fault]` in a policy makes that fail")
    return GateVerdict(
        passed=passed,
        inconclusive=inconclusive,
        violations=tuple(violations),
        absorbed=tuple(_sorted(report, [one for part in parts for one in part.absorbed])),
        judged=judged,
        differences=differences(report, baseline) if baseline is not None else (),
        notes=tuple(notes),
        source=source or (baseline.source if baseline is not None else ""),
    )


def _left_out(report: ReportData) -> Iterator[str]:
    """Yield, in words, the modules that were not judged because the run left them out."""
    for name in ("only", "skip"):
        if globs := report.settings.get(name):
            yield f"modules that --{name} {' '.join(map(str, globs))} left out were not judged"


def _sorted(report: ReportData, violations: Sequence[Violation]) -> list[Violation]:
    """Return the worst first; of equals the whole run's, then in execution order; gaps, which are no errors, last."""
    orders = {(row.module, row.call, row.output): row.order for row in reversed(report.rows)}

    def key(one: Violation) -> tuple[bool, float, int]:
        order = -1 if one.module is None else orders.get((one.module, one.call, one.output), 0)
        return one.column == "unmatched", -one.severity, order

    return sorted(violations, key=key)
