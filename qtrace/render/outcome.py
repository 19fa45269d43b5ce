"""The outcome of a run in words: what it says, where to look, what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from qtrace.records import Argument, Outcome, ReportData, Row, Verdict
from qtrace.render.leap import agrees, error_of, execution_order, first_leap
from qtrace.render.notes import notes, spec
from qtrace.render.numbers import apart, count, number, share
from qtrace.render.paths import shown
from qtrace.render.selection import beyond_numbers
from qtrace.render.summary import root_rows

STYLES = {Outcome.CLEAN: "bold green", Outcome.FAULT: "bold red"}
UNDECIDED = "bold yellow"


def outcome(report: ReportData) -> RenderableType:
    """Return the outcome's sentence and what supports it, one line each."""
    style = UNDECIDED if report.error else STYLES.get(report.outcome, UNDECIDED)
    first, *more = _sentences(report)
    head = Text.assemble((f"outcome: {report.outcome.value}", style), ". ", first)
    return Group(head, *(Padding(Text(line), (0, 0, 0, 2), expand=False) for line in more))


def _sentences(report: ReportData) -> Iterator[str]:
    if report.error:
        yield f"The run ended early, after {count(len(report.rows), 'row')}: {report.error}."
        return
    if report.outcome is Outcome.INCONCLUSIVE:
        covered = report.coverage
        yield (
            f"Too little was compared to say: {covered.compared} of {covered.reference_calls} calls "
            f"({share(covered.compared, covered.reference_calls)})."
        )
        yield "`qtrace modules`, with the same options, shows how names were aligned and who has no partner."
        return
    yield {
        Outcome.CLEAN: "The candidate computes what the reference computes.",
        Outcome.FAULT: "The candidate does not compute what the reference computes.",
        Outcome.DRIFT: "The difference grows slowly; no single module is to blame.",
    }[report.outcome]
    yield from _final(report)
    yield from _findings(report)
    yield from _way(report)


def _final(report: ReportData) -> Iterator[str]:
    """Yield how far apart the final outputs are: the one that no number expresses, else the worst."""
    rows = root_rows(report)
    odd = next((row for row in rows if beyond_numbers(row)), None)
    if odd is not None:
        yield f"Final {odd.output or 'output'}: {', '.join(notes(odd))}."
        return
    judged = [row for row in rows if not agrees(row)] or rows
    worst = max(judged, key=lambda row: error_of(row) or 0.0, default=None)
    if worst is not None and (error := error_of(worst)) is not None:
        limit = report.settings.get("tolerance")
        value, bar = number(error), "rounding noise"
        if isinstance(limit, float):
            value, bar = apart(error, limit)
            bar = f"the tolerance {bar}"
        where = "within" if agrees(worst) else "above"
        name = worst.output or "output"
        yield f"Final {name}: PEIR {value}, {where} {bar} (lower is better)."


def _findings(report: ReportData) -> Iterator[str]:
    for finding in sorted(report.findings, key=lambda one: one.rank):
        yield f"{finding.rank}. {shown(finding.module)} ({finding.kind}): {finding.summary}"


def _way(report: ReportData) -> Iterator[str]:
    """Yield what happened on the way to the final outputs: the first leap, or what was undone."""
    ordered = execution_order(report.rows)
    yield from _first_non_finite(ordered)
    leap = first_leap(ordered)
    if leap is not None and report.outcome is Outcome.FAULT:
        before = "the first row of all" if leap.before is None else f"after at most {number(leap.before)}"
        yield f"First leap: {place(leap.row)}, PEIR {number(error_of(leap.row))}, {before}."
        argument = _around(leap.row, report.arguments)
        if argument is not None:
            yield (
                f"{shown(argument.caller)} calls {shown(argument.module)} with another {argument.argument}: "
                f"{_contrast(argument)}."
            )
    elif report.outcome is Outcome.CLEAN:
        undone = [row for row in ordered if not agrees(row) and error_of(row) is not None]
        if undone:
            worst = max(undone, key=lambda row: error_of(row) or 0.0)
            yield (
                f"Differences in {count(len(undone), 'row')} on the way are undone before the output, "
                f"most at {place(worst)}, PEIR {number(error_of(worst))}."
            )


def _first_non_finite(ordered: Sequence[Row]) -> Iterator[str]:
    row = next((row for row in ordered if row.verdict is Verdict.NON_FINITE and row.non_finite is not None), None)
    if row is not None and row.non_finite is not None:
        reference, candidate = row.non_finite
        yield (
            f"NaN or Inf first at {place(row)}: {count(reference, 'element')} of the reference's, "
            f"{candidate} of the candidate's."
        )


def _around(leap: Row, arguments: Sequence[Argument]) -> Argument | None:
    """Return the argument that differs most among those of the calls that were under way at a row."""
    around = [
        argument
        for argument in arguments
        if argument.sample == leap.sample
        and argument.order <= leap.order
        and f"{leap.module}.".startswith(f"{argument.module}." if argument.module else "")
    ]
    return min(
        around,
        key=lambda a: (
            a.peir is not None,
            not _both_tensors(a),
            a.module.count("."),
            -(a.peir or 0.0),
            a.order,
        ),
        default=None,
    )


def _both_tensors(argument: Argument) -> bool:
    return all(one is not None and one.shape is not None for one in (argument.reference, argument.candidate))


def _contrast(argument: Argument) -> str:
    """Return both values' specs, or where these are the same how far apart the values are."""
    mine, theirs = spec(argument.reference), spec(argument.candidate)
    if mine == theirs:
        return f"{mine} on both sides, |reference - candidate| up to {number(argument.max)}"
    return f"{mine} in the reference, {theirs} in the candidate"


def place(row: Row) -> str:
    """Return where a row is: module path, call and output where they tell it apart, sample likewise."""
    text = shown(row.module)
    if row.call:
        text += f"#{row.call}"
    if row.output:
        text += f" output {row.output}"
    return text + (f" (sample {row.sample})" if row.sample else "")
