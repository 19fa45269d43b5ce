"""How much of the reference was compared, what was not, and why: silence must not look like agreement."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from qtrace.report.notes import reason
from qtrace.report.numbers import share
from qtrace.report.paths import shown
from qtrace.report.records import ReportData, Unmatched

NAMED = 4
# A reference call without counterpart is one reason of coverage, and two of the modules themselves.
BEHIND = {"alone": ("partner_not_called", "other_place")}


def coverage(report: ReportData) -> RenderableType:
    """Return the coverage line, and a line for every reason why calls were not compared."""
    covered = report.coverage
    line = Text("compared ")
    line.append(f"{covered.compared} of {covered.reference_calls} calls", style="bold")
    line.append(f" ({share(covered.compared, covered.reference_calls)})")
    if not covered.reasons:
        return line
    line.append("; not compared:")
    lines: list[RenderableType] = [line]
    for key, calls in sorted(_reasons(report).items(), key=lambda item: -item[1]):
        lines.append(Padding(Text(f"{calls} {reason(key)}{_names(report, key)}"), (0, 0, 0, 2), expand=False))
    return Group(*lines)


def _reasons(report: ReportData) -> dict[str, int]:
    """Return the calls that were not compared by reason, the more precise ones where these account for all of them."""
    found: dict[str, int] = {}
    for key, calls in report.coverage.reasons.items():
        behind = [(one.reason, one.calls) for one in _modules(report, BEHIND.get(key, ()))]
        if calls != sum(number for _, number in behind):
            behind = [(key, calls)]
        for name, number in behind:
            found[name] = found.get(name, 0) + number
    return found


def _modules(report: ReportData, reasons: Collection[str]) -> list[Unmatched]:
    return [one for one in report.unmatched if one.reason in reasons and one.side == "reference" and one.calls]


def _names(report: ReportData, key: str) -> str:
    """Return the modules behind a reason: all when they are few, else some and where to see the rest."""
    names = list(dict.fromkeys(shown(one.module) for one in _modules(report, BEHIND.get(key, (key,)))))
    if not names:
        return ""
    if len(names) <= NAMED:
        return ": " + ", ".join(names)
    return f": {', '.join(names[:NAMED])} and {len(names) - NAMED} more modules (`qtrace modules` lists them)"
