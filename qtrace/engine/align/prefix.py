"""The whole tree was moved below another module, as by a user's wrapper with `self.model = …`, or lifted out of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from qtrace.engine.align.module_info import Names, Tree

# Only a module near the root can hold the whole tree; to try deeper ones would take quadratic time.
_DEEPEST = 3


def prefix_shift(reference: Tree, candidate: Tree) -> Names:
    """Return the names under the one prefix that explains most of them; none where exact names do nearly as well.

    A candidate may have the reference's names by chance: what wraps a `model` in a `model` has a `model`, too.
    """
    below = reference.below
    running = {path for path in candidate.below if candidate[path].runs}
    exact = len(below & running)
    if len(below) <= 2 * exact + 1:
        return {}
    lower = _counted((prefix for prefix, rest in _cuts(running) if rest in below), 2 * exact + 1)
    higher = _counted((prefix for prefix, rest in _cuts(below) if rest in running), max(2 * exact + 1, lower[1]))
    if 2 * max(lower[1], higher[1]) < len(below):
        return {}
    if higher[0]:
        lifted = ((path, path.removeprefix(f"{higher[0]}.")) for path in below if path.startswith(f"{higher[0]}."))
        return {path: name for name, path in lifted if path in candidate}
    prefix = lower[0]
    names = ((f"{prefix}.{path}", path) for path in below)
    return {path: name for path, name in names if path in candidate} | {prefix: ""}


def _cuts(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (prefix, rest) of each path, for prefixes of few components."""
    for path in paths:
        parts = path.split(".")
        for depth in range(1, min(_DEEPEST + 1, len(parts))):
            yield ".".join(parts[:depth]), ".".join(parts[depth:])


def _counted(prefixes: Iterable[str], least: int) -> tuple[str, int]:
    """Return the prefix that occurs most often, and how often, where that is more than `least`; else ("", 0)."""
    counts = Counter(prefixes)
    best = min(counts, key=lambda prefix: (-counts[prefix], prefix), default="")
    return (best, counts[best]) if counts[best] > least else ("", 0)
