"""Text that comes from models and their code, fit for a file: it may hold any character at all."""

from __future__ import annotations

import re

# What a reader cannot see, what turns the text around it, and what XML or UTF-8 does not take at all.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Return `text` with a backslash escape for each control character; tabs and line breaks stay.

    >>> visible("red \\x1b[31m, torn \\ud800")
    'red \\\\x1b[31m, torn \\\\ud800'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Return `text` as `visible` does, and in one line.

    >>> one_line("sizes differ\\n\\tat dim 1")
    'sizes differ\\\\n\\\\tat dim 1'
    """
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def shortened(text: str, most: int) -> str:
    """Return text in at most `most` characters, an ellipsis where that cuts it.

    >>> shortened("too bad", 4)
    'too…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"
