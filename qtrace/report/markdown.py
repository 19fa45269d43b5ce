"""Markdown for a pull request's comment or a job's summary: the diagnosis first, then folded tables.

A comment holds 65,536 characters, and GitHub refuses a longer one as a whole. So every list has a limited room, and
states how many of its lines are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from qtrace.report.arguments import grouped
from qtrace.report.diagnosis_panel import diagnosis_text
from qtrace.report.html import environment
from qtrace.report.notes import notes, reason, spec
from qtrace.report.problems import column, judgement, observed_and_limit, place, told
from qtrace.report.records import Argument, GateVerdict, Outcome, ReportData, Row, Violation
from qtrace.report.table import View, select, verdict_word
from qtrace.report.text import count, number, one_line, share, shortened, shown

# In bytes, of which a character has one or more, since GitHub counts some characters twice.
LIMIT = 65_536
DIAGNOSIS = 12_000
VIOLATIONS = 10_000
FOLDED = 5_000
SENTENCE = 300
OPEN = 10
TOP = 20
# Characters with a meaning in Markdown, and those that would end a cell or a tag; an @ would notify a user.
SPECIAL = re.compile(r"[`*_\[\]~$]")
STRUCTURE = re.compile(r"[\\<>&|@]")
PLAIN_CODE = re.compile(r"[^`|\\]+")


def markdown(report: ReportData, verdict: GateVerdict | None = None) -> str:
    """Return the report in GitHub's Markdown, in less than 65,536 bytes of UTF-8."""
    parts = [
        [f"### {_mark(report, verdict)} qtrace: {escaped(shortened(judgement(report, verdict), SENTENCE))}"],
        _fenced(diagnosis_text(report)),
        _violations(verdict.violations if verdict is not None else ()),
        _rows(report),
        _arguments(report.arguments),
        _not_compared(report),
        _listed("Warnings", report.warnings),
        _listed("Of the gate", told(verdict)),
        _listed("This run", _run(report)),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def escaped(text: str) -> str:
    """Return prose as Markdown shows it, in one line; an `@` notifies no user.

    >>> escaped("overrides **: 2 < 3")
    'overrides \\\\*\\\\*: 2 &#60; 3'
    """
    referred = STRUCTURE.sub(lambda found: f"&#{ord(found[0])};", one_line(text))
    return SPECIAL.sub(r"\\\g<0>", referred).replace("&#64;", "&#64;&#8203;")


def code(text: str) -> str:
    """Return a name in code type; character references replace characters that would end it, or a table's cell.

    >>> code("model.layers.0"), code("a|b")
    ('`model.layers.0`', '<code>a&#124;b</code>')
    """
    name = one_line(text)
    if PLAIN_CODE.fullmatch(name) and name == name.strip():
        return f"`{name}`"
    inner = "".join(char if char.isalnum() or char == " " else f"&#{ord(char)};" for char in name)
    return f"<code>{inner}</code>"


def _mark(report: ReportData, verdict: GateVerdict | None) -> str:
    if verdict is not None:
        return "⚠️" if verdict.inconclusive else "✅" if verdict.passed else "❌"
    return {Outcome.CLEAN: "✅", Outcome.FAULT: "❌"}.get(report.outcome, "⚠️")


def _fenced(text: str) -> list[str]:
    """Return unchanged text between fences that are longer than any fence in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    kept = _within(text.split("\n"), DIAGNOSIS)
    left = len(text.split("\n")) - len(kept)
    rest = [f"… and {count(left, 'more line')}"] if left else []
    return [f"{fence}text", *kept, *rest, fence]


def _violations(violations: Sequence[Violation]) -> list[str]:
    if not violations:
        return []
    lines = [
        _line(code(place(one)), escaped(column(one)), *observed_and_limit(one), code(one.rule), escaped(one.reason))
        for one in violations
    ]
    heading = ("where", "what", "observed", "limit", "rule", "why")
    shown_first, folded = lines[:OPEN], lines[OPEN:]
    found = [f"**{count(len(lines), 'violation')}**", "", *_table(heading, shown_first, VIOLATIONS)]
    if folded:
        found += ["", *_fold(f"{count(len(folded), 'more violation')}", _table(heading, folded, FOLDED))]
    return found


def _rows(report: ReportData) -> list[str]:
    """Return the rows that the terminal's table shows, worst first."""
    chosen = select(report, View(top=TOP))
    if not chosen.rows:
        return []

    def line(row: Row) -> str:
        call = f"#{row.call}" if row.call else ""
        sample = f"sample {row.sample} of {row.samples}" if row.samples > 1 or row.sample else ""
        said = notes(row, leap=chosen.leap, largest=chosen.largest)
        numbers = (row.peir_in, row.peir_local, row.peir, row.mean, row.max)
        output = code(row.output) if row.output else ""
        what = " ".join(part for part in (code(shown(row.module) + call), output, sample) if part)
        return _line(what, verdict_word(row.verdict), *map(number, numbers), escaped(", ".join(said)))

    heading = ("row", "verdict", "received", "introduced", "PEIR ↓", "mean", "max", "notes")
    return _fold(
        f"Rows: {len(chosen.rows)} of {len(report.rows):,}, the worst first",
        _table(heading, [line(row) for row in chosen.rows], FOLDED),
    )


def _arguments(arguments: Sequence[Argument]) -> list[str]:
    if not arguments:
        return []
    lines = []
    for group in grouped(arguments):
        first = group[0]
        more = f" and {count(len(group) - 1, 'more call')}" if len(group) > 1 else ""
        call = f"#{first.call}" if first.call else ""
        sides = (code(spec(first.reference)), code(spec(first.candidate)))
        lines.append(_line(code(shown(first.module) + call) + more, code(first.argument), code(shown(first.caller)),
                           *sides, number(first.peir)))  # fmt: skip
    heading = ("called module", "argument", "caller", "reference", "candidate", "PEIR ↓")
    return _fold("Arguments that differ", _table(heading, lines, FOLDED))


def _not_compared(report: ReportData) -> list[str]:
    covered = report.coverage
    compared = f"Compared {covered.compared} of {covered.reference_calls} calls "
    compared += f"({share(covered.compared, covered.reference_calls)})"
    if not covered.reasons and not report.unmatched:
        return [compared]
    lines = [f"- {calls} {escaped(reason(key))}" for key, calls in covered.reasons.items()]
    lines += [
        f"- {code(shown(one.module))} of the {escaped(one.side)}: {escaped(reason(one.reason))}"
        for one in report.unmatched
    ]
    return _fold(compared, list(_cut(lines, FOLDED, "- … and {} more")))


def _run(report: ReportData) -> list[str]:
    sides = (("reference", report.reference), ("candidate", report.candidate))
    lines = [f"{name}: {side.type}, {side.source}" if side.source else f"{name}: {side.type}" for name, side in sides]
    return [*lines, *environment(report), f"qtrace {report.qtrace}, {report.created}"]


def _listed(summary: str, texts: Iterable[str]) -> list[str]:
    lines = [f"- {escaped(text)}" for text in texts]
    return _fold(summary, list(_cut(lines, FOLDED, "- … and {} more"))) if lines else []


def _fold(summary: str, lines: Sequence[str]) -> list[str]:
    """Return lines in a fold; Markdown is parsed again only after an empty line."""
    return [f"<details><summary>{escaped(summary)}</summary>", "", *lines, "", "</details>"]


def _table(heading: Sequence[str], lines: Sequence[str], room: int) -> list[str]:
    more = "| … and {} more |" + " |" * (len(heading) - 1)
    return [_line(*heading), _line(*("---" for _ in heading)), *_cut(lines, room, more)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cut(lines: Sequence[str], room: int, more: str) -> Iterator[str]:
    """Yield the lines that fit the room, then the number of further lines."""
    kept = _within(lines, room)
    yield from kept
    if len(kept) < len(lines):
        yield more.format(f"{len(lines) - len(kept):,}")


def _within(lines: Sequence[str], room: int) -> list[str]:
    """Return as many of the first lines as fit `room` bytes."""
    kept = []
    for line in lines:
        room -= _size(line) + 1
        if room < 0:
            break
        kept.append(line)
    return kept


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
