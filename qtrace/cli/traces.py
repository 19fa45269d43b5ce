"""Stored traces as arguments of a command."""

from __future__ import annotations

from pathlib import Path

_SCHEME = "trace:"


def folder_of(given: Path) -> Path:
    """Return the folder that is meant: what is given, or, where that is a SPEC as `qtrace run` takes it, its folder.

    >>> folder_of(Path("trace:runs/a")).as_posix()
    'runs/a'
    """
    text = str(given)
    return Path(text.removeprefix(_SCHEME)) if text.startswith(_SCHEME) and not given.exists() else given
