"""Prompt commands from a file, one a line."""

from __future__ import annotations

import sys
from pathlib import Path

from qtrace.errors import SourceError


class Script:
    """Reads as standard input does, and shows each command as if it had been typed.

    Blank lines and lines that begin with # are left out; the prompt takes the end of the file for Ctrl-D. Raises
    `SourceError` for a file that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SourceError(f"--commands {path}: {said}; expected a file of prompt commands, one a line") from error
        self._lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        self._next = 0

    def readline(self) -> str:
        """Return the next command with its line break, nothing at the end."""
        if self._next == len(self._lines):
            return ""
        line = self._lines[self._next] + "\n"
        self._next += 1
        sys.stdout.write(line)
        return line
