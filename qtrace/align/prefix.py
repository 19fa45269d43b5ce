"""The whole tree was moved below another module, as by a user's wrapper with `self.model = …`, or lifted out of one."""

from __future__ import annotations

from qtrace.align.modules import Names, Tree

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
    best: Names = {}
    most = 0
    for prefix in sorted(path for path in candidate.below if path.count(".") < _DEEPEST):
        hits = sum(f"{prefix}.{path}" in running for path in below)
        if hits > most:
            most = hits
            best = {f"{prefix}.{path}": path for path in below if f"{prefix}.{path}" in candidate} | {prefix: ""}
    for prefix in sorted(path for path in below if path.count(".") < _DEEPEST):
        lifted = {path[len(prefix) + 1 :]: path for path in below if path.startswith(f"{prefix}.")}
        hits = len(lifted.keys() & running)
        if hits > most:
            most = hits
            best = {path: name for path, name in lifted.items() if path in candidate}
    return best if most > 2 * exact + 1 and 2 * most >= len(below) else {}
