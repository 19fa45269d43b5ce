"""The line of code that a finding points to, as files in a repository are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtrace.report.records import Finding

# Whoever fixes a finding nearly always edits the candidate.
SIDES = ("candidate", "reference")


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of a file: `file` is relative to the repository's root where it is `in_repository`.

    Else it is what the report says, which for an installed package begins with the package's name.
    """

    file: str
    line: int
    in_repository: bool


def source_line(finding: Finding | None) -> SourceLine | None:
    """Return the finding's line, of the candidate's code or the reference's: one in this repository, if any is."""
    places = [_place(finding.source.get(side)) for side in SIDES] if finding is not None and finding.source else []
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


def _place(site: Any) -> SourceLine | None:
    """Return one side of a finding's `source`; None where the report does not know it."""
    if not isinstance(site, dict) or not isinstance(site.get("file"), str) or not site["file"]:
        return None
    line = site.get("line")
    number = line if isinstance(line, int) and line > 0 else 1
    path = repository_path(site["file"])
    return SourceLine(site["file"].replace("\\", "/") if path is None else path, number, path is not None)
