"""Globs over module paths: `*` is one path component, `**` any number of them; within a component `*`, `?`, `[…]`.

>>> matches("model.layers.*.self_attn", "model.layers.0.self_attn")
True
>>> matches("model.*", "model.layers.0")
False
>>> matches("**.q_proj", "q_proj")
True
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from qtrace.errors import UsageError, near

ROOT = "<root>"
EVERY_MODULE = "**"


_TOKEN = re.compile(r"\*|\?|\[!?[^\]]+\]|.", re.DOTALL)


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Every component is matched with the dot behind it, so that `**` may match no component at all.
    parts = []
    for component in pattern.split("."):
        if component == "**":
            parts.append(r"(?:[^.]*\.)*")
        else:
            parts.append(_TOKEN.sub(_translated, component) + r"\.")
    return re.compile("".join(parts))


def _translated(token: re.Match[str]) -> str:
    text = token[0]
    if text == "*":
        return "[^.]*"
    if text == "?":
        return "[^.]"
    if len(text) > 1:
        return f"[^{text[2:]}" if text[1] == "!" else text
    return re.escape(text)


def matches(pattern: str, path: str) -> bool:
    """Return whether the glob `pattern` matches the whole module path; the root is written `<root>`."""
    return _compiled(pattern).fullmatch((path or ROOT) + ".") is not None


def select(
    patterns: Iterable[str], paths: Iterable[str], *, option: str, listed_by: str = "qtrace modules"
) -> set[str]:
    """Return the paths that any of the patterns matches.

    Raises `UsageError`, naming `option` and the most similar paths, or the command that lists them, for a pattern that
    matches nothing: the run would silently compare other modules than intended.
    """
    known = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = {path for path in known if matches(pattern, path)}
        if not hits:
            names = near(pattern.replace("**.", "").replace("*", ""), [path for path in known if path])
            hint = f"near: {', '.join(names)}" if names else f"`{listed_by}` lists the paths"
            raise UsageError(f"{option} {pattern!r} matches no module; {hint}")
        chosen |= hits
    return chosen
