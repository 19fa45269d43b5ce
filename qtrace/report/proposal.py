"""A command to type next, as a shell takes it when it is copied from the screen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.text import Text

INDENT = "    "


def proposal(subcommand: str, typed: Sequence[str], *more: str, width: int) -> Text:
    """Return `qtrace SUBCOMMAND` with what was typed before and `more`, broken between words with backslashes.

    >>> print(proposal("run", ["pair.yaml"], "--inspect", "model.layers.0", width=40))
    qtrace run pair.yaml \\
        --inspect model.layers.0
    """
    lines = [f"qtrace {subcommand}"]
    for phrase in _phrases([*typed, *more]):
        # An option stays beside its value.
        if len(lines[-1]) + 1 + len(phrase) + len(" \\") <= width:
            lines[-1] += f" {phrase}"
        else:
            lines.append(INDENT + phrase)
    return Text(" \\\n".join(lines), style="bold", no_wrap=True, overflow="ignore")


def _phrases(words: Sequence[str]) -> list[str]:
    phrases: list[str] = []
    for word in words:
        follows = bool(phrases) and phrases[-1].startswith("--") and " " not in phrases[-1]
        if follows and not word.startswith("--"):
            phrases[-1] += f" {shlex.quote(word)}"
        else:
            phrases.append(shlex.quote(word))
    return phrases
