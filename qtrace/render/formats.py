"""Where `--report PATH` goes: the formats by file ending, and the only code here that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from qtrace.errors import OutputError, UsageError
from qtrace.records import ReportData, dumps

STDOUT = "-"

FORMATS: Mapping[str, Callable[[ReportData], str]] = {
    ".json": dumps,
}


def check(paths: Iterable[str]) -> None:
    """Make sure, before anything runs, that a report can be written to each of `paths`.

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
    """Open the file for writing, and leave everything as it was; permissions do not tell of `/proc` or of a quota."""
    existed = place.exists()
    try:
        with place.open("ab"):
            pass
        if not existed:
            place.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"report {place}: {reason}; choose another place") from error


def save(report: ReportData, path: str | Path) -> None:
    """Write the report to `path` in the format of its ending, replacing what is there.

    Raises `UsageError` where no format has this ending, `OutputError` where the file cannot be written.
    """
    text = _format(path)(report)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"report {path}: {reason}; nothing was written, choose another place") from error


def _format(path: str | Path) -> Callable[[ReportData], str]:
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        found = f"the ending {ending}" if ending else "a path without an ending"
        raise UsageError(f"report {path}: no format has {found}; known: {', '.join(FORMATS)}, or - for stdout")
    return FORMATS[ending]
