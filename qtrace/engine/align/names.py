"""Rules that take a candidate's path for what it says: the same path, one kept in an attribute, one with additions."""

from __future__ import annotations

from collections import Counter

from qtrace.engine.align.module_info import Names, Tree

# So many modules, one in the other, may keep the same name.
_MOST_LAYERS = 3


def same_path(reference: Tree, candidate: Tree) -> Names:
    """Return the paths that both sides have."""
    return {path: path for path in candidate.modules if path in reference}


def by_attribute(reference: Tree, candidate: Tree) -> Names:
    """Return the names that wrappers keep in an attribute.

    Which attribute that is, is found out: on most modules that have it, it is a reference path, and its components
    occur in the module's own path. `activation = "relu"` beside a module `relu` is no such name, nor is one that says
    the same of nearly everybody.
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
        distinct = len(set(named[attribute].values()))
        if 2 * hits[attribute] >= seen[attribute] and _MOST_LAYERS * distinct >= hits[attribute]:
            found = named[attribute] | found
    return found


def stripped(reference: Tree, candidate: Tree, shifted: Names) -> Names:
    """Return the paths that are the reference's once the components are dropped that occur nowhere in the reference.

    `wrapped` and `_orig_mod` are such. At the end of a path only those that elsewhere stand before a known one:
    `q_proj.wrapped` is `q_proj` where there is a `wrapped.layers`, but `q_proj.weight_quantizer` is something that
    was put inside. And of a container only what holds all that was found of it: `layers.0.wrapped` is no less than
    `layers.0`, but `layers.0.attn` is another name for something in there. `shifted` are the names of a tree that was
    moved as a whole.
    """
    known = reference.vocabulary
    wrappers = _wrapper_components(candidate, known)
    found: Names = {}
    inner: list[tuple[str, str]] = []
    for path in candidate.below:
        parts = path.split(".")
        if parts[-1] not in known and parts[-1] not in wrappers:
            continue
        kept = ".".join(part for part in parts if part in known)
        name = shifted.get(kept, "") if shifted else kept
        # An inner module must not answer to the root just because every component of its path is foreign.
        if not name or name not in reference:
            continue
        if parts[-1] in known:
            found[path] = name
        else:
            inner.append((path, name))
    held = _names_below(found)
    for path, name in inner:
        outer = _without_foreign_end(path, known)
        mine, theirs = ({n for n in held.get(p, ()) if n.startswith(f"{name}.")} for p in (path, outer))
        if mine == theirs and (mine or not reference.children(name)):
            found[path] = name
    return found


def infixed(reference: Tree, candidate: Tree) -> Names:
    """Return the paths that are the reference's without one component that wraps a single module each time it occurs.

    For a wrapper whose attribute has a name that the reference uses as well, as `model` or `module`. None where names
    as they are explain as much.
    """
    below = reference.below
    running = {path for path in candidate.below if candidate[path].runs}
    exact = len(below & running)
    single = Counter(
        path.rpartition(".")[2]
        for path in sorted(candidate.below)
        if len(candidate.children(path.rpartition(".")[0])) == 1 and path.rpartition(".")[2] in reference.vocabulary
    )
    best: Names = {}
    most = exact + 1
    for infix, times in single.items():
        if times < 2:
            continue
        names = {path: name for path in candidate.below if (name := _unwrapped(path, infix, candidate)) in reference}
        hits = len({name for path, name in names.items() if path in running and name})
        if hits > most and 2 * hits >= len(below):
            most, best = hits, names
    return best


def _unwrapped(path: str, infix: str, candidate: Tree) -> str:
    """Return a path without that component, wherever it is an only child."""
    kept, around = [], ""
    for part in path.split("."):
        if part != infix or len(candidate.children(around)) > 1:
            kept.append(part)
        around = f"{around}.{part}" if around else part
    return ".".join(kept)


def _names_below(found: Names) -> dict[str, set[str]]:
    """Return the names that were found strictly below each candidate path."""
    below: dict[str, set[str]] = {}
    for path, name in found.items():
        while path := path.rpartition(".")[0]:
            below.setdefault(path, set()).add(name)
    return below


def _without_foreign_end(path: str, known: set[str]) -> str:
    parts = path.split(".")
    while parts and parts[-1] not in known:
        parts.pop()
    return ".".join(parts)


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
