"""Shows one finding: the error, its repeats, the certainty, the lines of code, the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qtrace.report.records import Finding, ReportData
from qtrace.report.table import View
from qtrace.report.text import count, number, pattern, shown

_CONTINUATION = "    "


def proposal(subcommand: str, typed: Sequence[str], *more: str, width: int) -> Text:
    """Return `qtrace SUBCOMMAND` with the words typed before and `more`, broken between words with backslashes.

    >>> print(proposal("run", ["pair.yaml"], "--inspect", "model.layers.0", width=40))
    qtrace run pair.yaml \\
        --inspect model.layers.0
    """
    lines = [f"qtrace {subcommand}"]
    for phrase in _phrases([*typed, *more]):
        # An option stays on one line with its value.
        if len(lines[-1]) + 1 + len(phrase) + len(" \\") <= width:
            lines[-1] += f" {phrase}"
        else:
            lines.append(_CONTINUATION + phrase)
    return Text(" \\\n".join(lines), style="bold", no_wrap=True, overflow="ignore")


def _phrases(words: Sequence[str]) -> list[str]:
    phrases: list[str] = []
    for word in words:
        follows = bool(phrases) and phrases[-1].startswith("--") and " " not in phrases[-1]
        if follows and not word.startswith("--"):
            phrases[-1] += f" {shlex.quote(word)}"
        else:
            phrases.append(shlex.quote(word))
    return phrases


# A fix of a finding nearly always edits the candidate.
SIDES = ("candidate", "reference")


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of a file: `file` is relative to the repository's root where it is `in_repository`.

    Otherwise it is the file as in the report, which for an installed package begins with the package's name.
    """

    file: str
    line: int
    in_repository: bool


def source_line(finding: Finding | None) -> SourceLine | None:
    """Return the finding's line in the candidate's or the reference's code: if possible one in this repository."""
    places = (
        [_source_place(finding.source.get(side)) for side in SIDES] if finding is not None and finding.source else []
    )
    lines = [place for place in places if place is not None]
    return next((line for line in lines if line.in_repository), lines[0] if lines else None)


def repository_path(file: str) -> str | None:
    """Return the path, from the repository's root on, of a file in or below the current folder; None for others.

    The root is the nearest folder with a `.git`, from the current one upwards; else the current folder itself.
    """
    here = Path.cwd()
    try:
        path = (here / file).resolve()
        if not path.is_relative_to(here.resolve()) or not path.is_file():
            return None
    except (OSError, ValueError, RuntimeError):
        return None
    root = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
    return path.relative_to(root.resolve()).as_posix()


def _source_place(site: Any) -> SourceLine | None:
    """Return one side of a finding's `source`; None where the report does not know it."""
    if not isinstance(site, dict) or not isinstance(site.get("file"), str) or not site["file"]:
        return None
    line = site.get("line")
    number = line if isinstance(line, int) and line > 0 else 1
    path = repository_path(site["file"])
    return SourceLine(site["file"].replace("\\", "/") if path is None else path, number, path is not None)


KINDS = {
    "introduces": "introduces an error",
    "miscalls": "passes a wrong argument",
    "non_finite": "makes NaN or Inf",
    "structure": "makes other calls",
    "raises": "raises an exception",
}
# For a module with inner modules, these kinds say that its own code is at fault.
OWN_CODE = ("introduces", "miscalls", "structure")
MOST_EVIDENCE = 4
INDENT = 3
LABEL_WIDTH = 14


def headline(finding: Finding) -> str:
    """Return the error in a few words."""
    if finding.kind == "miscalls" and finding.argument:
        return f"passes a wrong {finding.argument}"
    return KINDS.get(finding.kind, finding.kind.replace("_", " "))


def finding_lines(finding: Finding, report: ReportData, view: View, *, width: int) -> Iterator[RenderableType]:
    """Yield the complete description of one finding, for `width` columns."""
    yield Text.assemble(f"{finding.rank}. ", (_place(finding), "bold"), f" {headline(finding)}")
    grid = Table.grid(padding=0)
    grid.add_column(width=LABEL_WIDTH, style="dim")
    grid.add_column(overflow="fold")
    for label, text in _facts(finding):
        grid.add_row(Text(label), Text(text))
    yield _indented(Text(_sentence(finding.summary)))
    yield _indented(grid)
    what, command, options = _next(finding, report)
    if view.command:
        yield _indented(Text(f"To see {what}:"))
        yield _indented(proposal(command, view.command, *options, width=width - INDENT))
        if finding.rank == 1 and finding.kind != "raises" and not report.has_stored_side:
            yield _indented(Text("To stop both models there:"))
            yield _indented(proposal("debug", view.command, width=width - INDENT))


def _facts(finding: Finding) -> Iterator[tuple[str, str]]:
    """Yield labelled facts: repeats, callees, certainty, lines of code, evidence."""
    if finding.callee is not None:
        more = [callee for callee in finding.callees if callee != finding.callee]
        yield "callee", finding.callee + (f" and {_more(finding.callee, more, len(more))}" if more else "")
    members = [member for member in finding.members if member != finding.module]
    amount = max(len(members), finding.count - 1)
    if amount:
        yield "also in", _more(finding.module, members, amount)
    yield finding.strength, _sureness(finding)
    for side, site in (finding.source or {}).items():
        if site is not None:
            yield side, _line(site)
    for place, line in enumerate(finding.evidence[:MOST_EVIDENCE]):
        yield "" if place else "evidence", line
    if len(finding.evidence) > MOST_EVIDENCE:
        yield "", f"and {len(finding.evidence) - MOST_EVIDENCE} more in the report"


def _more(first: str, others: Sequence[str], amount: int) -> str:
    """Return the number of further paths after the first, and their pattern."""
    if not others:
        return f"{amount} more"
    return f"{amount} more: {others[0] if amount == 1 else pattern([first, *others])}"


def _sureness(finding: Finding) -> str:
    """Return the effect of the graft, that is of forcing the reference's tensors, on the final outputs."""
    graft = finding.graft
    if graft is None:
        return "the reference runs on the same inputs" if finding.kind == "raises" else "no graft was made"
    before, after = graft.get("before"), graft.get("after")
    done = "handing on the reference's tensors in its place"
    if finding.kind == "miscalls":
        done = f"handing the callee the reference's {finding.argument or 'arguments'}"
    if after is None:
        return f"{done} leaves the final outputs without a PEIR"
    if before is None:
        return f"{done} takes the final outputs from no PEIR at all to {number(after)}"
    if finding.confirmed:
        return f"{done} takes the final PEIR from {number(before)} to {number(after)}"
    return f"{done} takes the final PEIR from {number(before)} only to {number(after)}"


def _line(place: dict[str, Any]) -> str:
    text = f"{place.get('file')}:{place.get('line')}"
    return f"{text}, in {place['function']}" if place.get("function") else text


def _next(finding: Finding, report: ReportData) -> tuple[str, str, Sequence[str]]:
    """Return the next thing to examine, the command that shows it, and the command's options."""
    if finding.kind == "miscalls" and finding.callee:
        return "what the callee receives on each side", "run", ("--inspect", finding.callee)
    inside = f"{finding.module}." if finding.module else ""
    # A stored side has no operators.
    in_code = finding.kind in OWN_CODE and not report.has_stored_side
    if in_code and any(row.module.startswith(inside) and row.module for row in report.rows):
        call = ("--call-index", str(finding.call)) if finding.call else ()
        return "the operators inside it, side by side", "ops", ("--module", shown(finding.module), *call)
    if not finding.module:
        return "every call of both sides", "run", ("--show-trace", "both")
    return "what goes in and what comes out on each side", "run", ("--inspect", finding.module)


def _place(finding: Finding) -> str:
    return shown(finding.module) + (f"#{finding.call}" if finding.call else "")


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, INDENT), expand=False)


def briefly(findings: Sequence[Finding], *, most: int) -> Iterator[Text]:
    """Yield one line for each finding after the first `most`."""
    for finding in findings[most:]:
        yield Text(f"{finding.rank}. {_place(finding)} {headline(finding)}")
    if len(findings) > most:
        yield Text(f"{count(len(findings) - most, 'finding')} in brief; --all says everything", style="dim")
