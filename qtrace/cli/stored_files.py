"""Stored reports and traces as arguments of a command: how one is told from a config, and read. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtrace.errors import SourceError, UsageError
from qtrace.report.records import GateVerdict, ReportData
from qtrace.report.records.codec import check_schema, from_plain, parse
from qtrace.report.records.report import SCHEMA

_SCHEME = "trace:"


def folder_of(given: Path) -> Path:
    """Return the folder that is meant: what is given, or, where that is a SPEC as `qtrace run` takes it, its folder.

    >>> folder_of(Path("trace:runs/a")).as_posix()
    'runs/a'
    """
    text = str(given)
    return Path(text.removeprefix(_SCHEME)) if text.startswith(_SCHEME) and not given.exists() else given


ENDING = ".json"
# What a report's text holds somewhere, and a config's does not.
MARK = '"qtrace-report/'


def is_report(path: Path) -> bool:
    """Return whether a path names a stored report: by its ending, or by what the file holds."""
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
        SourceError: it cannot be read, is damaged (the place is named), or is of another schema.
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
