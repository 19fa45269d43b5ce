"""The report as one HTML page that needs no server and no network; JavaScript only sorts."""

from __future__ import annotations

import html as format
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from qtrace.report.arguments import grouped
from qtrace.report.columns import METRICS
from qtrace.report.diagnosis_panel import diagnosis_text
from qtrace.report.notes import notes, reason, spec
from qtrace.report.problems import column, judgement, observed_and_limit, place, told
from qtrace.report.records import AGREEING, Argument, GateVerdict, Outcome, ReportData, Row, Side, Violation
from qtrace.report.table import View, select, verdict_word
from qtrace.report.text import count, number, one_line, share, shown


def environment(report: ReportData) -> list[str]:
    """Return a line for each entry of the report's environment; an entry with several values is one line, too."""
    lines = []
    for name, value in report.environment.items():
        held = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name}: {held}")
    return lines


PAGE = Path(__file__).with_name("page.html")
NUMBERS = ("received", "introduced", "peir", "mean", "min", "max", "stddev", "sqnr", "cosine", "rel_l2")
GOOD, BAD, DOUBT = "good", "bad", "doubt"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table: its text, the sort key of a number ("" for none), its style."""

    text: str
    value: str | None = None
    look: str = ""

    def html(self) -> str:
        """Return the cell as HTML, its text escaped."""
        looks = " ".join(part for part in ("n" if self.value is not None else "", self.look) if part)
        attributes = f' class="{looks}"' if looks else ""
        attributes += f' data-v="{format.escape(self.value)}"' if self.value is not None else ""
        return f"<td{attributes}>{_text(self.text)}</td>"


def html(report: ReportData, verdict: GateVerdict | None = None) -> str:
    """Return the report as a complete page: judgement, diagnosis, violations, every row, the uncompared calls."""
    sections = [
        ("Diagnosis", f"<pre>{format.escape(diagnosis_text(report))}</pre>"),
        ("Violations", _violations(verdict.violations if verdict is not None else ())),
        (f"Rows, the worst first ({len(report.rows):,})", _rows(report)),
        ("Arguments that differ", _arguments(report.arguments)),
        ("Not compared", _not_compared(report)),
        ("Warnings", _listed(report.warnings)),
        ("Of the gate", _listed(told(verdict))),
        ("Environment", _listed(environment(report))),
    ]
    judged = judgement(report, verdict)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=_text(f"qtrace: {judged}"),
        mood=_mood(report, verdict),
        judgement=_text(judged),
        facts="\n".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in _facts(report)),
        sections="\n".join(f"<h2>{_text(heading)}</h2>\n{body}" for heading, body in sections if body),
    )


def _mood(report: ReportData, verdict: GateVerdict | None) -> str:
    if verdict is not None:
        return DOUBT if verdict.inconclusive else GOOD if verdict.passed else BAD
    return {Outcome.CLEAN: GOOD, Outcome.FAULT: BAD}.get(report.outcome, DOUBT)


def _facts(report: ReportData) -> Iterator[tuple[str, str]]:
    covered = report.coverage
    yield "reference", _model(report.reference)
    yield "candidate", _model(report.candidate)
    yield "outcome", report.outcome.value
    compared = share(covered.compared, covered.reference_calls)
    yield "compared", f"{covered.compared} of {covered.reference_calls} calls ({compared})"
    yield "made", f"{report.created}, by qtrace {report.qtrace}"


def _model(side: Side) -> str:
    said = [side.source, side.type, count(side.parameters, "parameter"), ", ".join(side.dtypes)]
    return " · ".join(part for part in said if part)


def _violations(violations: Sequence[Violation]) -> str:
    lines = []
    for one in violations:
        observed, limit = observed_and_limit(one)
        numbers = [Cell(observed, _sortable(one.observed)), Cell(limit, _sortable(one.limit))]
        lines.append([Cell(place(one), look="m"), Cell(column(one)), *numbers, Cell(one.rule), Cell(one.reason)])
    return _table(("where", "what", "observed", "limit", "rule", "why"), lines, numeric=(2, 3))


def _rows(report: ReportData) -> str:
    """Return every row: first those that the terminal's table shows, then those that it folds, each ranked."""
    chosen = select(report, View(top=len(report.rows)))
    shown_first = {id(row) for row in chosen.rows}
    folded = [row for row in select(report, View(everything=True)).rows if id(row) not in shown_first]

    def line(row: Row) -> list[Cell]:
        off = "off" if row.verdict in AGREEING else ""
        counts = [Cell(str(value), str(value)) for value in (row.order, row.call, row.sample, row.samples)]
        numbers = [Cell(METRICS[key].text(row), _sortable(METRICS[key].of(row))) for key in NUMBERS]
        said = ", ".join(notes(row, leap=chosen.leap, largest=chosen.largest))
        names = [Cell(shown(row.module), look=f"m {off}".strip()), Cell(row.output), Cell(row.type)]
        return [*names, Cell(verdict_word(row.verdict)), *numbers, Cell(said, look="m"), *counts]

    headings = ["module", "output", "type", "verdict", *(METRICS[key].heading for key in NUMBERS), "notes"]
    counted = ["order", "call", "sample", "samples"]
    first = headings.index("verdict") + 1
    numeric = [*range(first, first + len(NUMBERS)), *range(len(headings), len(headings) + len(counted))]
    return _table([*headings, *counted], [line(row) for row in (*chosen.rows, *folded)], numeric=numeric)


def _arguments(arguments: Sequence[Argument]) -> str:
    lines = []
    for group in grouped(arguments):
        first = group[0]
        called = shown(first.module) + (f"#{first.call}" if first.call else "")
        more = f" and {count(len(group) - 1, 'more call')}" if len(group) > 1 else ""
        cells = (called + more, first.argument, shown(first.caller), spec(first.reference), spec(first.candidate))
        lines.append([*map(Cell, cells), Cell(number(first.peir), _sortable(first.peir))])
    return _table(("called module", "argument", "caller", "reference", "candidate", "PEIR ↓"), lines, numeric=(5,))


def _not_compared(report: ReportData) -> str:
    reasons = [f"{count(calls, 'call')} {reason(key)}" for key, calls in report.coverage.reasons.items()]
    unmatched = [
        [Cell(shown(one.module), look="m"), Cell(one.side), Cell(one.type), Cell(reason(one.reason))]
        for one in report.unmatched
    ]
    return _listed(reasons) + _table(("module", "of the", "type", "why"), unmatched)


def _table(headings: Sequence[str], lines: Sequence[Sequence[Cell]], numeric: Sequence[int] = ()) -> str:
    if not lines:
        return ""
    heads = "".join(
        f'<th scope="col"{" class=n" if place in numeric else ""}>{_text(heading)}</th>'
        for place, heading in enumerate(headings)
    )
    body = "\n".join(f"<tr>{''.join(cell.html() for cell in cells)}</tr>" for cells in lines)
    return (
        f'<div class="wide"><table class="sortable">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _listed(texts: Iterable[str]) -> str:
    lines = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f"<ul>{lines}</ul>" if lines else ""


def _sortable(value: float | None) -> str:
    """Return a number as JavaScript reads it; an empty text where there is none."""
    if value is None or math.isnan(value):
        return ""
    return repr(value) if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _text(text: str) -> str:
    return format.escape(one_line(text))
