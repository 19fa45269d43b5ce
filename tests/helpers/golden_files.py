"""Text as a person reads it, against a file; `QTRACE_UPDATE_GOLDEN=1` (`make golden`) writes the files."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden"
UPDATE = "QTRACE_UPDATE_GOLDEN"


def same_as_golden(text: str, name: str) -> None:
    """Compare `text`, without the spaces at the ends of its lines, with the golden file `name`."""
    path = FOLDER / name
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if os.environ.get(UPDATE) == "1":
        path.write_text(text, encoding="utf-8")
        return
    assert path.is_file(), f"no golden file {name}; {UPDATE}=1 writes it"
    assert text == path.read_text(encoding="utf-8"), f"differs from golden/{name}; {UPDATE}=1 takes it over"


def names() -> set[str]:
    """Return the names of the golden files that there are."""
    return {path.name for path in FOLDER.iterdir()}
