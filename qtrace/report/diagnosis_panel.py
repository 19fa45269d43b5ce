"""The diagnosis panel: the outcome, the final outputs, the findings and the next commands."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qtrace.report.columns import HIGHER, LOWER, Leap, agrees, error_of, escapes, execution_order, first_leap
from qtrace.report.finding import briefly, finding_lines, headline, proposal
from qtrace.report.notes import STATUS_WORDS, notes, spec
from qtrace.report.records import ONE_SIDED, Argument, Finding, Outcome, ReportData, Row, Status, Verdict
from qtrace.report.table import View, beyond_numbers
from qtrace.report.text import ABSENT, apart, count, decibels, number, percent, share, shorten, shown, visible

STYLES = {Outcome.CLEAN: "bold green", Outcome.FAULT: "bold red"}
UNDECIDED = "bold yellow"


def style(report: ReportData) -> str:
    """Return the style of the outcome."""
    return UNDECIDED if report.error else STYLES.get(report.outcome, UNDECIDED)


def gist(report: ReportData) -> str:
    """Return the result of the run in one sentence."""
    if report.error:
        return f"The run ended early, after {count(len(report.rows), 'row')}: {report.error}."
    if report.outcome is Outcome.INCONCLUSIVE:
        covered = report.coverage
        return (
            f"Too little was compared to say: {covered.compared} of {covered.reference_calls} calls "
            f"({share(covered.compared, covered.reference_calls)})."
        )
    return {
        Outcome.CLEAN: "The candidate computes what the reference computes.",
        Outcome.FAULT: "The candidate does not compute what the reference computes.",
        Outcome.DRIFT: "The difference grows slowly; no single module is to blame.",
    }[report.outcome]


def outcome(report: ReportData, *, width: int) -> Text:
    """Return the outcome in one line, with the first finding if there is one."""
    line = Text.assemble((f"outcome: {report.outcome.value}", style(report)), ". ")
    if report.error or not report.findings:
        return line.append(gist(report))
    first = min(report.findings, key=lambda one: one.rank)
    line.append(count(len(report.findings), "finding") + (", first: " if len(report.findings) > 1 else ": "))
    said = f" {headline(first)}."
    return line.append(shorten(first.module, width - len(line) - len(said)) + said)


SUMMARY_TITLE = "Final output, reference against candidate"


def root_rows(report: ReportData) -> list[Row]:
    """Return the rows of the root's outputs, in execution order."""
    return sorted((row for row in report.rows if row.module == ""), key=lambda row: row.order)


def summary(report: ReportData) -> RenderableType | None:
    """Return the box with Mean |diff|, PEIR in percent and SQNR in dB of each final output, if any."""
    rows = root_rows(report)
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("output", overflow="fold")
    for heading in ("Mean |diff|", f"PEIR {LOWER}", f"SQNR {HIGHER}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = row.output or "output"
        if row.samples > 1:
            name += f", worst of {row.samples} samples: {row.sample}"
        table.add_row(Text(name), Text(mean_text(row)), Text(peir_text(row)), Text(sqnr_text(row)))
    return Panel(table, title=SUMMARY_TITLE, box=box.ROUNDED, expand=False, title_align="left")


def mean_text(row: Row) -> str:
    """Return the mean absolute difference in the output's own unit, as a plain decimal where that is readable."""
    if row.mean is None:
        return ABSENT
    return f"{row.mean:.6f}" if 1e-3 <= row.mean < 1e6 else number(row.mean)


def peir_text(row: Row) -> str:
    """Return PEIR in percent, or the status that says why there is none."""
    if row.status not in (Status.COMPARED, Status.CONSTANT_REFERENCE) and row.verdict is not Verdict.EQUAL:
        return STATUS_WORDS[row.status]
    return percent(row.peir)


def sqnr_text(row: Row) -> str:
    """Return the signal-to-noise ratio in dB; without noise it is infinite."""
    if row.sqnr_db is not None:
        return f"{decibels(row.sqnr_db)} dB"
    return "∞ dB (equal)" if row.peir == 0 or row.verdict is Verdict.EQUAL else ABSENT


# How many findings are shown in full; each further one is a line.
IN_FULL = 3
TITLE = "Diagnosis"
RULE = "─"
INDENT = 2
WITHOUT_CULPRIT = "--no-local"


def diagnosis(report: ReportData, view: View, *, width: int) -> RenderableType:
    """Return the panel, in `width` columns; it has no side borders, so that commands can be copied."""
    inner = width - INDENT
    found = sorted(report.findings, key=lambda one: one.rank)
    parts: list[RenderableType] = [Text(gist(report), style=style(report)), *map(Text, _supported(report))]
    most = len(found) if view.everything else IN_FULL
    for finding in found[:most]:
        parts += [Text(), *finding_lines(finding, report, view, width=inner)]
    if len(found) > most:
        parts += [Text(), *briefly(found, most=most)]
    if not found:
        parts += _next(report, view, inner)
    heading = f"{RULE} {TITLE} "
    return Group(
        Text(heading + RULE * (width - len(heading)), style="bold"),
        Padding(Group(*parts), (0, 0, 0, INDENT), expand=False),
        Text(RULE * width, style="bold"),
    )


def _supported(report: ReportData) -> Iterator[str]:
    """Yield sentences that support the outcome, without the findings."""
    if report.error or report.outcome is Outcome.INCONCLUSIVE:
        return
    yield from _final(report)
    ordered = execution_order(report.rows)
    if report.outcome is Outcome.DRIFT:
        yield from _growth(ordered)
        if _measured(report):
            yield "The table ranks the modules by the error that each of them introduces."
    elif report.outcome is Outcome.CLEAN:
        yield from _undone(ordered)
    elif not report.findings:
        yield from _first_non_finite(ordered)
        leap = first_leap(ordered)
        if leap is not None:
            yield from _leaps(leap, report.arguments)
        if _measured(report):
            yield "No single module stands out as the one to blame."
        elif report.has_stored_side and report.settings.get("local"):
            yield "Which module is to blame shows when both models run (qtrace run)."
        else:
            yield "Which module is to blame was not looked for."


def _final(report: ReportData) -> Iterator[str]:
    """Yield the distance of the final outputs: the output whose difference no number expresses, else the worst.

    Outputs that people read stand before what lies deeper, such as the keys and values of a cache beside the logits.
    """
    rows = [row for row in root_rows(report) if row.status not in ONE_SIDED] or root_rows(report)
    wrong = [row for row in rows if not agrees(row)]
    depth = min((row.output.count(".") for row in wrong), default=0)
    rows = [row for row in wrong if row.output.count(".") == depth] or rows
    odd = next((row for row in rows if beyond_numbers(row)), None)
    if odd is not None:
        yield f"Final {odd.output or 'output'}: {', '.join(notes(odd))}."
        return
    worst = _worst(rows)
    if worst is not None and (error := error_of(worst)) is not None:
        limit = report.settings.get("tolerance")
        value, bar = number(error), "rounding noise"
        if isinstance(limit, float):
            value, bar = apart(error, limit)
            bar = f"the tolerance {bar}"
        where = "within" if agrees(worst) else "above"
        yield f"Final {worst.output or 'output'}: PEIR {value}, {where} {bar} (lower is better)."


def _worst(rows: Sequence[Row]) -> Row | None:
    judged = [row for row in rows if not agrees(row)] or rows
    return max(judged, key=lambda row: error_of(row) or 0.0, default=None)


def _growth(ordered: Sequence[Row]) -> Iterator[str]:
    """Yield the course of a drift: the place of the first difference that reaches the output, and the final one."""
    first = next((row for row in ordered if escapes(row) and error_of(row)), None)
    last = _worst([row for row in ordered if row.module == ""])
    if first is None or last is None or first is last:
        return
    before, after = error_of(first), error_of(last)
    where, end = place(first), f"the final {last.output or 'output'}"
    if before is not None and after is not None and after < before:
        yield f"It begins with PEIR {number(before)} at {where}, and is {number(after)} at {end}."
    else:
        yield f"It grows from PEIR {number(before)} at {where} to {number(after)} at {end}."


def _undone(ordered: Sequence[Row]) -> Iterator[str]:
    undone = [row for row in ordered if not agrees(row) and error_of(row) is not None]
    if undone:
        worst = max(undone, key=lambda row: error_of(row) or 0.0)
        yield (
            f"Differences in {count(len(undone), 'row')} on the way are undone before the output, "
            f"most at {place(worst)}, PEIR {number(error_of(worst))}."
        )


def _leaps(leap: Leap, arguments: Sequence[Argument]) -> Iterator[str]:
    """Yield the place where the error first leaps, and the argument of an enclosing call that differs most."""
    before = "the first row of all" if leap.before is None else f"after at most {number(leap.before)}"
    yield f"First leap: {place(leap.row)}, PEIR {number(error_of(leap.row))}, {before}."
    argument = _around(leap.row, arguments)
    if argument is not None:
        yield (
            f"{shown(argument.caller)} calls {shown(argument.module)} with another {argument.argument}: "
            f"{_contrast(argument)}."
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
        if argument.order <= leap.order
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
    """Return the specs of both values, or where these are the same the distance of the values."""
    mine, theirs = spec(argument.reference), spec(argument.candidate)
    if mine == theirs:
        return f"{mine} on both sides, |reference - candidate| up to {number(argument.max)}"
    return f"{mine} in the reference, {theirs} in the candidate"


def _measured(report: ReportData) -> bool:
    return any(row.peir_local is not None for row in report.rows)


def _next(report: ReportData, view: View, width: int) -> Iterator[RenderableType]:
    """Yield the next command to type where there is no finding."""
    if report.error or report.outcome is Outcome.CLEAN:
        return
    typed = [word for word in view.command if word != WITHOUT_CULPRIT]
    if report.outcome is Outcome.INCONCLUSIVE:
        yield Text("How names were aligned, and which have no partner:")
        yield proposal("modules", typed, width=width) if typed else Text("qtrace modules", style="bold")
    elif typed and report.has_stored_side and WITHOUT_CULPRIT in view.command:
        yield Text("Which module is at fault, by what accumulated:")
        yield proposal("run", typed, width=width)
    elif typed and not _measured(report) and not report.has_stored_side:
        yield Text("What each module adds, and which is at fault:")
        yield proposal("run", typed, width=width)
    elif report.outcome is Outcome.DRIFT and not report.has_stored_side:
        return
    elif typed and (leap := first_leap(report.rows)) is not None and leap.row.module:
        yield Text("What goes in and out where it first leaps:")
        yield proposal("run", typed, "--inspect", leap.row.module, width=width)


def place(row: Row) -> str:
    """Return the place of a row: its module path, and call, output and sample where they are needed to identify it."""
    text = shown(row.module)
    if row.call:
        text += f"#{row.call}"
    if row.output:
        text += f" output {row.output}"
    return text + (f" (sample {row.sample})" if row.sample or row.samples > 1 else "")


WIDTH = 96


def plain(part: RenderableType, *, width: int = WIDTH) -> str:
    """Return a part of the terminal's report as text of `width` columns."""
    console = Console(
        file=io.StringIO(), width=width, color_system=None, force_jupyter=False, legacy_windows=False, highlight=False
    )
    with console.capture() as captured:
        console.print(part)
    return visible("\n".join(line.rstrip() for line in captured.get().split("\n")).strip("\n"))


def diagnosis_text(report: ReportData) -> str:
    """Return the diagnosis without its heading and its rules."""
    panel = plain(diagnosis(report, View(), width=WIDTH)).split("\n")
    inner = panel[1:-1]
    margin = min((len(line) - len(line.lstrip()) for line in inner if line), default=0)
    return "\n".join(line[margin:] for line in inner)


def finding_text(finding: Finding, report: ReportData) -> str:
    """Return the complete text on one finding."""
    return plain(Group(*finding_lines(finding, report, View(), width=WIDTH)))
