"""Stored reports and traces as arguments of a command: recognises and reads them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtrace.errors import SourceError, UsageError
from qtrace.report.records import GateVerdict, ReportData
from qtrace.report.records.codec import check_schema, from_plain, parse
from qtrace.report.records.report import SCHEMA

_SCHEME = "trace:"


def folder_of(given: Path) -> Path:
    """Return the folder of an argument: the argument itself, or the folder of a SPEC as `qtrace run` takes it.

    >>> folder_of(Path("trace:runs/a")).as_posix()
    'runs/a'
    """
    text = str(given)
    return Path(text.removeprefix(_SCHEME)) if text.startswith(_SCHEME) and not given.exists() else given


ENDING = ".json"
# A text that every report contains, and no config.
MARK = '"qtrace-report/'


def is_report(path: Path) -> bool:
    """Return whether a path names a stored report: by its ending, or by the file's contents."""
    if path.suffix.lower() == ENDING:
        return True
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text.lstrip().startswith("{") and MARK in text


def read_report(path: Path) -> ReportData:
    """Read a stored report.

    Raises:
        UsageError: there is no such file.
        SourceError: it cannot be read, is damaged (the place is named), or has another schema.
    """
    return from_plain(ReportData, _read(path), str(path))


def read_judged(path: Path) -> tuple[ReportData, GateVerdict | None]:
    """Read a stored report, and the gate's verdict where it has one; raises as `read_report` does."""
    from qtrace.report.json import verdict_in

    plain = _read(path)
    return from_plain(ReportData, plain, str(path)), verdict_in(plain, str(path))


def _read(path: Path) -> Any:
    """Return a report's JSON data."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        from qtrace.documents import missing

        raise UsageError(missing("report", str(path))) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SourceError(f"{path}: cannot be read as a report ({reason})") from error
    plain = parse(text, str(path))
    check_schema(plain, SCHEMA, str(path))
    return plain
