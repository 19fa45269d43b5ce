"""Annotations for GitHub Actions: workflow commands that a step prints, shown at the lines of a pull request.

GitHub shows ten errors, ten warnings and ten notices of a step and silently drops the others. So the worst come first,
one for each finding however many violations it explains, and a notice counts those left out.
"""

from __future__ import annotations

from qtrace.report.finding import SourceLine, source_line
from qtrace.report.problems import judgement, problems
from qtrace.report.records import GateVerdict, Outcome, ReportData
from qtrace.report.text import count, shortened, visible

MOST = 10
# In characters; GitHub accepts no longer title.
TITLE_LENGTH = 255
TITLE = "qtrace"


def workflow_commands(report: ReportData, verdict: GateVerdict | None = None) -> str:
    """Return one workflow command a line: errors, then one line on the run as a whole."""
    found = problems(report, verdict)
    lines = [
        _command("error", f"{TITLE}: {problem.title}", problem.text, source_line(problem.finding))
        for problem in found[:MOST]
    ]
    if len(found) > MOST:
        more = count(len(found) - MOST, "more problem")
        lines.append(_command("notice", TITLE, f"{more} of this run: GitHub shows {MOST} errors of a step"))
    doubtful = not found and report.outcome is not Outcome.CLEAN
    lines.append(_command("warning" if doubtful else "notice", TITLE, judgement(report, verdict)))
    return "\n".join(lines) + "\n"


def _command(kind: str, title: str, text: str, line: SourceLine | None = None) -> str:
    """Return a workflow command; only a file of the repository has a place where it can be shown."""
    properties = {"title": shortened(visible(title), TITLE_LENGTH)}
    if line is not None and line.in_repository:
        properties = {"file": line.file, "line": str(line.line), **properties}
    said = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{kind} {said}::{_data(text)}"


def _data(text: str) -> str:
    """Return the text after the second `::`, escaped as the runner decodes it."""
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
