"""Rules that take a candidate's path for what it says: the same path, one kept in an attribute, one with additions."""

from __future__ import annotations

from collections import Counter

from qtrace.align.modules import Names, Tree


def same_path(reference: Tree, candidate: Tree) -> Names:
    """Return the paths that both sides have."""
    return {path: path for path in candidate.modules if path in reference}


def by_attribute(reference: Tree, candidate: Tree) -> Names:
    """Return the names that wrappers keep in an attribute.

    Which attribute that is, is found out: on most modules that have it, it is a reference path, and its components
    occur in the module's own path. `activation = "relu"` beside a module `relu` is no such name.
    """
    seen: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    named: dict[str, Names] = {}
    for path, module in candidate.modules.items():
        for attribute, value in module.attributes.items():
            seen[attribute] += 1
            if value in reference and _is_subsequence(value, path):
                hits[attribute] += 1
                named.setdefault(attribute, {})[path] = value
    found: Names = {}
    for attribute in sorted(named, key=lambda a: (-hits[a], a)):
        if 2 * hits[attribute] >= seen[attribute]:
            found = named[attribute] | found
    return found


def stripped(reference: Tree, candidate: Tree, shifted: Names) -> Names:
    """Return the paths that are the reference's once the components are dropped that occur nowhere in the reference.

    `wrapped` and `_orig_mod` are such. At the end of a path only those that elsewhere stand before a known one:
    `q_proj.wrapped` is `q_proj` where there is a `wrapped.layers`, but `q_proj.weight_quantizer` is something that
    was put inside. `shifted` are the names of a tree that was moved as a whole.
    """
    known = reference.vocabulary
    wrappers = _wrapper_components(candidate, known)
    found: Names = {}
    for path in candidate.below:
        parts = path.split(".")
        if parts[-1] not in known and parts[-1] not in wrappers:
            continue
        kept = ".".join(part for part in parts if part in known)
        name = shifted.get(kept, "") if shifted else kept
        # An inner module must not answer to the root just because every component of its path is foreign.
        if name and name in reference:
            found[path] = name
    return found


def _wrapper_components(candidate: Tree, known: set[str]) -> set[str]:
    """Return the foreign components that somewhere stand directly or at a distance before a known one."""
    found: set[str] = set()
    for path in candidate.below:
        parts = path.split(".")
        last = max((position for position, part in enumerate(parts) if part in known), default=0)
        found.update(part for part in parts[:last] if part not in known)
    return found


def _is_subsequence(name: str, path: str) -> bool:
    """Return whether the components of `name` occur in `path` in this order; empty names do not count."""
    rest = iter(path.split("."))
    return bool(name) and all(part in rest for part in name.split("."))
