"""Shows the gate's verdict on the terminal and in a failed test: violations, their findings, the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from qtrace.report.coverage import coverage
from qtrace.report.diagnosis_panel import WIDTH, diagnosis, plain
from qtrace.report.finding import briefly, finding_lines, headline
from qtrace.report.problems import WHOLE_RUN, column, observed_and_limit
from qtrace.report.records import BaselineChange, GateVerdict, ReportData, Violation
from qtrace.report.table import View, plain_table
from qtrace.report.terminal import table
from qtrace.report.text import ABSENT, ROOT, count, shorten_all, shown

INDENT = 2
IN_FULL = 3
NARROWEST = 20
COMFORTABLE = 56
MOST_NAMED = 5
LOWER_LIMITS = ("sqnr_db", "cosine", "coverage")
STYLES = {"passed": "bold green", "failed": "bold red", "inconclusive": "bold yellow"}


def gate_section(verdict: GateVerdict, report: ReportData, *, width: int, top: int) -> Iterator[RenderableType]:
    """Yield everything except the verdict itself: environment first, then violations, then the findings behind them."""
    if verdict.differences:
        yield Text()
        yield Text("Not as it was when the baseline was written:", style="bold yellow")
        yield from (_indented(Text(line)) for line in verdict.differences)
    if verdict.violations:
        yield Text()
        yield _table(verdict.violations[: top or None], width=width)
        if top and len(verdict.violations) > top:
            yield Text(
                f"… and {count(len(verdict.violations) - top, 'more violation')}; --top 0 shows all", style="dim"
            )
        yield from _first(verdict, report)
        yield from _behind(verdict, report, width=width)
    yield Text()
    if verdict.absorbed:
        yield _absorbed(verdict.absorbed)
    yield from (Text(f"note: {note}") for note in verdict.notes)
    yield coverage(report)


def gate_line(verdict: GateVerdict, report: ReportData) -> Text:
    """Return the verdict in one line, with the worst row and the finding behind it."""
    word = "inconclusive" if verdict.inconclusive else "passed" if verdict.passed else "failed"
    line = Text.assemble((f"gate: {word}", STYLES[word]), ". ")
    against = f" against {verdict.source}" if verdict.source else ""
    judged = f"{count(verdict.judged, 'row')} judged{against}."
    if verdict.inconclusive:
        return line.append(f"Too little was compared to say; {judged}")
    if not verdict.violations:
        return line.append(judged)
    worst = next((one for one in verdict.violations if one.module is not None), verdict.violations[0])
    line.append(f"{count(len(verdict.violations), 'violation')}, {judged} Worst: ")
    line.append(f"{_place(worst, shown(worst.module or ''))} {_comparison(worst)}.")
    behind = next((finding for finding in report.findings if finding.rank == worst.finding), None)
    return line if behind is None else line.append(f" Behind it: {shown(behind.module)} {headline(behind)}.")


def baseline_lines(update: BaselineChange, path: str, refusal: str, *, top: int) -> Iterator[RenderableType]:
    """Yield the changes of the baseline, with emphasis on everything that is looser now."""
    yield Text()
    if update.loosened:
        said = "would be looser" if refusal else "is looser now"
        yield Text(f"LOOSER: {path} {said} in {count(len(update.loosened), 'place')}:", style="bold red")
        yield from (_indented(Text(line)) for line in update.loosened[: top or None])
        if top and len(update.loosened) > top:
            yield _indented(Text(f"… and {len(update.loosened) - top} more; --top 0 shows all", style="dim"))
    if refusal:
        yield Text(f"baseline {path} was not written: {refusal}", style="bold")
        return
    parts = [
        f"{len(names)} {word}"
        for word, names in (("loosened", update.loosened), ("tightened", update.tightened), ("new", update.appeared))
        if names
    ]
    parts += [f"{update.kept} as before"] if update.kept else []
    told = f" ({', '.join(parts)})" if parts else ""
    yield Text(f"baseline {path} written: {count(update.rows, 'row')}{told}")


def _comparison(violation: Violation) -> str:
    observed, limit = observed_and_limit(violation)
    if ABSENT in (observed, limit):
        return f"{column(violation)}: {violation.reason}"
    return f"{column(violation)} {observed} {_sign(violation)} {limit}"


def _sign(violation: Violation) -> str:
    if violation.observed is None or violation.limit is None:
        return ""
    return "<" if violation.column in LOWER_LIMITS else ">"


def _place(violation: Violation, path: str) -> str:
    """Return the place of a violation, with this path."""
    if violation.module is None:
        return WHOLE_RUN
    text = path or ROOT
    if violation.call:
        text += f"#{violation.call}"
    if violation.output:
        text += f" output {violation.output}"
    return text + (f" (sample {violation.sample})" if violation.sample else "")


def _table(violations: Sequence[Violation], *, width: int) -> RenderableType:
    """Return the violations, each with the line that set its limit and, beneath its path, the error."""
    cells = [(column(one), *observed_and_limit(one), _sign(one), _finding(one)) for one in violations]
    headings = ("judged", "observed", "limit", "", "finding")
    widths = [max(1, len(heading), *(len(cell[n]) for cell in cells)) for n, heading in enumerate(headings)]
    beside = max(len(_place(one, ROOT)) - len(ROOT) for one in violations)
    longest = max(len(shown(one.module or "")) for one in violations) + beside
    room = min(max(width - sum(widths) - len(widths), NARROWEST), max(longest, COMFORTABLE))
    known = dict.fromkeys(one.module for one in violations if one.module is not None)
    paths = shorten_all(known, max(room - beside, NARROWEST))
    table = plain_table()
    table.add_column("violation", width=room, overflow="fold")
    for place, justify in ((0, "left"), (1, "right"), (3, "left"), (2, "right"), (4, "right")):
        table.add_column(headings[place], width=widths[place], justify=justify)  # type: ignore[arg-type]
    for one, (judged, observed, limit, sign, finding) in zip(violations, cells, strict=True):
        path = Text(_place(one, paths.get(one.module or "", "")), style="red")
        beneath = _indented(Text(f"{one.rule}: {one.reason}", style="dim"))
        table.add_row(Group(path, beneath), judged, observed, sign, limit, finding)
    return table


def _finding(violation: Violation) -> str:
    return ABSENT if violation.finding is None else str(violation.finding)


def _first(verdict: GateVerdict, report: ReportData) -> Iterator[Text]:
    """Yield the first violation in execution order, where another is the worst and no finding explains more."""
    orders = {(row.module, row.call, row.output): row.order for row in report.rows}
    placed = [one for one in verdict.violations if (one.module, one.call, one.output) in orders]
    first = min(placed, key=lambda one: orders[one.module or "", one.call, one.output], default=None)
    if first is not None and first is not verdict.violations[0] and not report.findings:
        yield Text(f"First in execution order: {_place(first, shown(first.module or ''))} {_comparison(first)}.")


def _behind(verdict: GateVerdict, report: ReportData, *, width: int) -> Iterator[RenderableType]:
    """Yield the findings that explain violations."""
    ranks = {one.finding for one in verdict.violations}
    found = [finding for finding in sorted(report.findings, key=lambda one: one.rank) if finding.rank in ranks]
    if not found:
        return
    yield Text()
    yield Text("Behind them", style="bold")
    for finding in found[:IN_FULL]:
        yield from map(_indented, finding_lines(finding, report, View(), width=width - INDENT))
    if len(found) > IN_FULL:
        yield from map(_indented, briefly(found, most=IN_FULL))


def _absorbed(absorbed: Sequence[Violation]) -> Text:
    named = ", ".join(dict.fromkeys(shown(one.module or "") for one in absorbed[:MOST_NAMED]))
    more = f" and {len(absorbed) - MOST_NAMED} more" if len(absorbed) > MOST_NAMED else ""
    return Text(
        f"absorbed, not counted: {named}{more}; the calls around them undo the difference "
        f"(worst: {_comparison(absorbed[0])}), and `strict: true` counts them"
    )


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, INDENT), expand=False)


VIOLATIONS = 10
ROWS = 10
# Hints at options that the command line has, but pytest does not.
HINTS = ("; --top 0 shows all", "; --all shows them")


def parity_text(
    report: ReportData, verdict: GateVerdict, *, update: BaselineChange | None = None, path: str = "", refusal: str = ""
) -> str:
    """Return the message of a failed test as plain text, one sentence first.

    Args:
        report: the run's report.
        verdict: the gate's verdict on the report.
        update: the change of the baseline, where writing it was requested.
        path: the baseline's file.
        refusal: the reason why the baseline was not written.
    """
    text = plain(Group(*_parts(report, verdict, update, path, refusal)), width=WIDTH)
    for hint in HINTS:
        text = text.replace(hint, "")
    return text


def _parts(
    report: ReportData, verdict: GateVerdict, update: BaselineChange | None, path: str, refusal: str
) -> Iterator[RenderableType]:
    yield gate_line(verdict, report)
    if update is not None and refusal:
        yield from baseline_lines(update, path, refusal, top=VIOLATIONS)
    shown = replace(verdict, violations=verdict.violations[:VIOLATIONS])
    # The panel below shows the findings behind the violations.
    yield from gate_section(shown, replace(report, findings=()), width=WIDTH, top=0)
    if len(verdict.violations) > VIOLATIONS:
        yield Text(f"… and {count(len(verdict.violations) - VIOLATIONS, 'more violation')}")
    yield Text()
    yield diagnosis(report, View(), width=WIDTH)
    if report.rows:
        yield Text()
        yield from table(report, View(top=ROWS), width=WIDTH)
