"""Writes `--report PATH`: the formats by file ending and by name, and the only code here that writes files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from qtrace.errors import OutputError, UsageError
from qtrace.report.annotations import workflow_commands
from qtrace.report.csv import csv
from qtrace.report.html import html
from qtrace.report.json import json
from qtrace.report.junit import junit
from qtrace.report.markdown import markdown
from qtrace.report.records import GateVerdict, ReportData
from qtrace.report.sarif import sarif

STDOUT = "-"

# Returns the text for a report, and for the gate's verdict on it if there is one.
Format = Callable[[ReportData, GateVerdict | None], str]

# Code scanning accepts both of its endings; where several endings fit a name, the longest counts.
ENDINGS: Mapping[str, Format] = {
    ".json": json,
    ".html": html,
    ".md": markdown,
    ".csv": csv,
    ".xml": junit,
    ".sarif": sarif,
    ".sarif.json": sarif,
}
# Annotations are only for a step's stdout, so they have a name and no ending.
NAMES: Mapping[str, Format] = {
    "json": json,
    "html": html,
    "markdown": markdown,
    "csv": csv,
    "junit": junit,
    "sarif": sarif,
    "github": workflow_commands,
}


def check(paths: Iterable[str]) -> None:
    """Check, before anything runs, that a report can be written to each of `paths`.

    Raises:
        UsageError: no format has this ending.
        OutputError: the folder does not exist or cannot be written to, or the path is a folder.
    """
    for path in paths:
        if path == STDOUT:
            continue
        place = Path(path)
        if place.is_dir():
            raise OutputError(f"report {path}: this is a folder; name a file in it")
        _format(path)
        if not place.parent.is_dir():
            raise OutputError(f"report {path}: the folder {place.parent} does not exist; create it first")
        _try_to_open(place)


def _try_to_open(place: Path) -> None:
    """Open the file for writing without changing it; permissions do not reveal `/proc` or a quota."""
    existed = place.exists()
    try:
        with place.open("ab"):
            pass
        if not existed:
            place.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"report {place}: {reason}; choose another place") from error


def save(report: ReportData, path: str | Path, verdict: GateVerdict | None = None) -> None:
    """Write the report to `path` in the format of its ending, replacing an existing file.

    Raises `UsageError` where no format has this ending, `OutputError` where the file cannot be written.
    """
    text = _format(path)(report, verdict)
    try:
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"report {path}: {reason}; nothing was written, choose another place") from error


def _format(path: str | Path) -> Format:
    name = Path(path).name.lower()
    fitting = [ending for ending in ENDINGS if name.endswith(ending)]
    if not fitting:
        ending = Path(path).suffix.lower()
        found = f"the ending {ending}" if ending else "a path without an ending"
        raise UsageError(f"report {path}: no format has {found}; known: {', '.join(ENDINGS)}, or - for stdout")
    return ENDINGS[max(fitting, key=len)]
