"""Judges a report by a policy: every limit on each of its rows, and the limits of the whole run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qtrace.errors import UsageError
from qtrace.gate.limits import Context, Limit, is_excused, is_void, limits_of, numberless, read
from qtrace.patterns import EVERY_MODULE, matches, select
from qtrace.report.records import ONE_SIDED, Finding, ReportData, Row, Status, Violation

if TYPE_CHECKING:
    from qtrace.config import Policy


@dataclass
class LimitResults:
    """The violations, the violations of absorbed rows, and the number of judged rows.

    `rows` counts the rows that were judged by a limit; `inconclusive` says that too little was compared.
    """

    violations: list[Violation] = field(default_factory=list)
    absorbed: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    inconclusive: bool = False


def of_run(column: str, rule: str, reason: str, finding: int | None = None) -> Violation:
    """Return a violation of the whole run without a number."""
    return Violation(module=None, column=column, rule=rule, reason=reason, severity=math.inf, finding=finding)


class Causes:
    """The findings of a report; finds the one that explains a row."""

    def __init__(self, report: ReportData) -> None:
        self._findings = sorted(report.findings, key=lambda finding: finding.rank)
        self._begins = {finding.rank: _begin(finding, report.rows) for finding in self._findings}

    def of(self, module: str | None, order: int | None = None) -> int | None:
        """Return the rank of the finding that explains a row of `module`, at this place of the execution order.

        It is the finding that names the module itself or names it as a callee with a wrong argument; else the finding
        that names the innermost module around it; else the finding that shows first, if this is before the row. For the
        whole run, whose `module` is None, it is the first finding. None where no finding explains the row.
        """
        if module is None:
            return self._findings[0].rank if self._findings else None
        for finding in self._findings:
            if module in (finding.module, *finding.members, *finding.callees):
                return finding.rank
        around = [
            (len(path), -finding.rank)
            for finding in self._findings
            for path in _reached(finding)
            if _is_inside(module, path)
        ]
        if around:
            return -max(around)[1]
        before = [(begin, rank) for rank, begin in self._begins.items() if begin is not None and order is not None]
        earliest = min(before, default=None)
        return earliest[1] if earliest is not None and order is not None and earliest[0] <= order else None


def _reached(finding: Finding) -> tuple[str, ...]:
    """Return the modules in which a finding shows directly: the callees of a wrong argument, else the faulty ones."""
    return finding.callees or (finding.module, *finding.members)


def _is_inside(module: str, path: str) -> bool:
    return module.startswith(f"{path}.") if path else module != ""


def _begin(finding: Finding, rows: Iterable[Row]) -> int | None:
    """Return the place in execution order of the first row in which a finding shows."""
    paths = _reached(finding)
    found = (
        row.order for row in rows if row.module in paths or any(path and _is_inside(row.module, path) for path in paths)
    )
    return min(found, default=None)


def unmatched(report: ReportData, allowed: Sequence[str], causes: Causes) -> Iterator[Violation]:
    """Yield a violation for each module with a call, or an output, that only one side has.

    `allowed` are globs over the modules that may lack a partner. An additional output of the candidate is no uncompared
    call, and no violation.
    """
    reasons = {(one.side, one.module): one.reason.replace("_", " ") for one in report.unmatched}
    with_reference = {(row.module, row.call) for row in report.rows if row.status is not Status.CANDIDATE_ONLY}
    alone: dict[tuple[str, Status], list[Row]] = defaultdict(list)
    for row in report.rows:
        further = row.status is Status.CANDIDATE_ONLY and (row.module, row.call) in with_reference
        if row.status in ONE_SIDED and not further and not _is_any(allowed, row.module):
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
    """Yield, in words, the globs that allow modules without any difference left."""
    alone = {row.module for row in report.rows if row.status in ONE_SIDED} | {one.module for one in report.unmatched}
    for pattern in allowed:
        if pattern != EVERY_MODULE and not any(matches(pattern, module) for module in alone):
            yield f"allow_unmatched {pattern} is not needed: every call of it was compared"


def _is_any(patterns: Sequence[str], module: str) -> bool:
    return any(matches(pattern, module) for pattern in patterns)


def limits_rows(policy: Policy) -> bool:
    """Return whether a policy sets a limit on any row."""
    sections = [policy.limits(), *(section.limits() for section in policy.overrides.values())]
    return any(value is not None for section in sections for value in section.values())


def check(policy: Policy) -> None:
    """Raise `UsageError` for a policy that limits nothing, since every run would pass."""
    if not (limits_rows(policy) or policy.fail_on or policy.min_coverage is not None):
        raise UsageError("the policy sets no limit at all; set max_peir, min_coverage or fail_on, for example")


def check_patterns(policy: Policy, paths: Iterable[str]) -> None:
    """Raise `UsageError`, naming the most similar of `paths`, for a pattern of the policy that matches none of them."""
    known = list(paths)
    select(policy.overrides, known, option="the policy's overrides pattern")
    select(policy.allow_unmatched, known, option="the policy's allow_unmatched pattern")


def judge_by_policy(report: ReportData, policy: Policy) -> LimitResults:
    """Judge a report by a policy.

    Raises `UsageError` for a pattern that matches no module of the report.
    """
    _check_patterns(report, policy)
    causes, judged = Causes(report), LimitResults()
    _hold_run(report, policy, causes, judged)
    held = _hold_rows(report, policy, causes, judged)
    judged.violations += unmatched(report, policy.allow_unmatched, causes)
    judged.violations += _without_row(report, policy, held)
    judged.notes += needless(report, policy.allow_unmatched)
    if limits_rows(policy) and not judged.rows:
        judged.inconclusive = True
        judged.notes.append("no row could be held against a limit")
    return judged


def _check_patterns(report: ReportData, policy: Policy) -> None:
    known = dict.fromkeys([*(row.module for row in report.rows), *(one.module for one in report.unmatched)])
    try:
        check_patterns(policy, known)
    except UsageError as error:
        if report.settings.get("only") or report.settings.get("skip"):
            raise UsageError(f"{error} (the run left modules out, by --only or --skip)") from None
        raise


def _hold_run(report: ReportData, policy: Policy, causes: Causes, judged: LimitResults) -> None:
    """Judge the limits of the whole run."""
    covered, least = report.coverage, policy.min_coverage
    # A model without inner modules makes no call that counts.
    counted = covered.reference_calls or any(row.module for row in report.rows)
    if least is not None and counted and not least <= covered.fraction <= 1:
        judged.inconclusive = True
        reason = f"compared {covered.compared} of the reference's {covered.reference_calls} calls"
        severity = least / covered.fraction if covered.fraction > 0 else math.inf
        judged.violations.append(
            Violation(
                module=None, column="coverage", rule="min_coverage", reason=reason, observed=covered.fraction,
                limit=least, severity=severity,
            )
        )  # fmt: skip
    if report.outcome.value in policy.fail_on:
        reason = f"the outcome is {report.outcome.value}"
        judged.violations.append(of_run("outcome", "fail_on", reason, causes.of(None)))


def _hold_rows(report: ReportData, policy: Policy, causes: Causes, judged: LimitResults) -> list[Row]:
    """Judge each row by its limits; return the judged rows."""
    common = policy.limits()
    overrides = {pattern: section.limits() for pattern, section in policy.overrides.items()}
    by_path: dict[str, list[Limit]] = {}
    context = Context.of(report)
    held, void = [], 0
    for row in report.rows:
        if row.module not in by_path:
            by_path[row.module] = limits_of(row.module, common, overrides)
        limits = by_path[row.module]
        if not limits or row.status in ONE_SIDED:
            continue
        if is_void(row):
            void += 1
            continue
        found = list(_hold(row, limits, context))
        if not found:
            # No limit applies to this row, such as `max_mismatch` to floats.
            continue
        held.append(row)
        excused = is_excused(row, strict=policy.strict)
        for violation in found:
            if violation is not None:
                (judged.absorbed if excused else judged.violations).append(
                    replace(violation, finding=causes.of(row.module, row.order))
                )
    judged.rows = len(held)
    judged.notes += _of_all_samples(held, by_path)
    if void:
        judged.notes.append(f"{void} rows have no finite element to judge")
    return held


def _of_all_samples(held: Iterable[Row], by_path: Mapping[str, list[Limit]]) -> Iterator[str]:
    """Yield, in words, the limits that do not judge the worst of several samples."""
    keys = {limit.key for row in held if row.samples > 1 for limit in by_path[row.module]}
    for key in sorted(keys & {"max_mean", "max_stddev"}):
        yield f"{key} is held against all samples together: one bad sample among good ones may keep to it"


def _hold(row: Row, limits: list[Limit], context: Context) -> Iterator[Violation | None]:
    """Yield for each limit that applies to this row its violation, or None where it is kept.

    A row without numbers violates its first limit.
    """
    reason = numberless(row)
    if reason is not None:
        yield _violation(row, limits[0], limits[0].column, None, reason)
        return
    columns = [limit.column for limit in limits]
    for limit in limits:
        reading = read(row, limit.column, columns, context)
        if reading is None:
            continue
        bound = limit if reading.limit is None else replace(limit, value=reading.limit)
        kept = bound.is_kept(reading.value)
        yield None if kept else _violation(row, bound, reading.column, reading.value, reading.words)


def _violation(row: Row, limit: Limit, column: str, observed: float | None, reason: str) -> Violation:
    severity = limit.severity(observed)
    return Violation(
        module=row.module,
        call=row.call,
        output=row.output,
        sample=row.sample,
        column=column,
        rule=limit.rule,
        observed=observed,
        limit=limit.value,
        severity=severity,
        reason=reason or _excess(limit, observed, severity),
    )


def _excess(limit: Limit, observed: float | None, severity: float) -> str:
    """Return in words how far a number exceeds its limit."""
    if observed is None or math.isnan(observed):
        return "not a number"
    if limit.is_upper and observed < 0:
        return "less than nothing, which no run measures"
    way = "above" if limit.is_upper else "below"
    if limit.column == "sqnr_db":
        return f"{limit.value - observed:.3g} dB below the limit"
    return f"{way} the limit" + (f", by a factor of {severity:.4g}" if severity < math.inf else "")


def _without_row(report: ReportData, policy: Policy, held: list[Row]) -> Iterator[Violation]:
    """Yield a violation for each override that judged no row."""
    modules = {row.module for row in held}
    for pattern, section in policy.overrides.items():
        limited = any(value is not None for value in section.limits().values())
        if limited and not any(matches(pattern, module) for module in modules):
            yield of_run("missing", f"overrides {pattern}", f"no row of {pattern} could be held against its limits")
