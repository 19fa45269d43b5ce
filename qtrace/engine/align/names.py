"""Pairs modules by name: equal paths, paths below one more module, paths with additions, and the user's renames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from qtrace.engine.align.module_info import ModuleInfo, Names, Tree
from qtrace.engine.align.weights import ALIKE, WeightSample, likeness, sample_of
from qtrace.errors import UsageError, did_you_mean, near

# Only a module near the root can hold the whole tree; trying deeper ones would take quadratic time.
_DEEPEST = 3
# At most this many nested modules may keep the same name.
_MOST_LAYERS = 3


def prefix_shift(reference: Tree, candidate: Tree) -> Names:
    """Return the names under the one prefix that explains most of them; none where exact names do nearly as well.

    A candidate may have the reference's names by chance: where a `model` is wrapped in another `model`, the path
    `model` exists on both sides.
    """
    below = reference.below
    running = {path for path in candidate.below if candidate[path].runs}
    exact = len(below & running)
    if len(below) <= 2 * exact + 1:
        return {}
    lower = _counted((prefix for prefix, rest in _cuts(running) if rest in below), 2 * exact + 1)
    higher = _counted((prefix for prefix, rest in _cuts(below) if rest in running), max(2 * exact + 1, lower[1]))
    # Adapters give the reference many modules that their merge lacks, so the side with fewer must be explained.
    if 2 * max(lower[1], higher[1]) < min(len(below), len(running)):
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


def renamed(reference: Tree, candidate: Tree, renames: Mapping[str, str]) -> Names:
    """Return the reference path of every candidate path at or below one that a pattern matches; the first match counts.

    The pattern `encoder.layer.*.query` to `layers.*.q` maps `encoder.layer.3.query` to `layers.3.q`, and a `norm`
    below it to `layers.3.q.norm`.

    Raises:
        UsageError: a pattern matches no module of the candidate, or leads to none of the reference, or two modules
            would be aligned with one.
    """
    found: Names = {}
    for old, new in renames.items():
        if "**" in old + new:
            raise UsageError(f"--rename {old}={new}: here ** stands for nothing; write one * for each component")
        if old.count("*") < new.count("*"):
            raise UsageError(f"--rename {old}={new}: the right side has more * than the left one")
        pattern = re.compile(re.escape(old).replace(r"\*", r"([^.]+)") + r"(|\..*)")
        matched = [match for path in candidate.modules if path and (match := pattern.fullmatch(path))]
        if not matched:
            raise UsageError(f"--rename {old}={new}: {_hint(old, candidate)}")
        made = {match[0]: _filled(new, match.groups()) for match in matched}
        hits = {path: name for path, name in made.items() if name in reference}
        if not hits:
            first = next(iter(made.values()))
            raise UsageError(
                f"--rename {old}={new}: the reference has no module {first}; {did_you_mean(first, reference.below)}"
            )
        for path, name in hits.items():
            found.setdefault(path, name)
    _check_apart(found)
    return found


def overruled_renames(given: Names, names: Names) -> list[str]:
    """Return the paths that lose their partner, since the user paired that reference module with another path.

    Paths around or inside that other path keep it.
    """
    partners: dict[str, list[str]] = {}
    for path, name in given.items():
        partners.setdefault(name, []).append(path)
    return [
        path
        for path, name in names.items()
        if path not in given and name in partners and not any(_is_nested(path, other) for other in partners[name])
    ]


def rename_doubts(reference: Tree, candidate: Tree, given: Names) -> tuple[str, ...]:
    """Return a sentence that says which of the user's pairs hold unrelated weights; empty if none do."""
    wrong = []
    for path, name in given.items():
        alike = likeness(reference[name].module, candidate[path].module)
        if alike is not None and not alike >= ALIKE:
            wrong.append(path)
    if not wrong:
        return ()
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    owner = _owner(reference, sample_of(candidate[first].module))
    whose = f"it holds the weight of {owner}" if owner else "their weights have nothing in common"
    return (f"by --rename {first} answers to {given[first]}, but {whose}{more}: is the pattern right?",)


def _owner(reference: Tree, sample: WeightSample | None) -> str | None:
    """Return the reference module that holds this weight, where exactly one does."""
    owners = [path for path, info in reference.modules.items() if _holds(info, sample)]
    return owners[0] if len(owners) == 1 else None


def _holds(info: ModuleInfo, sample: WeightSample | None) -> bool:
    mine = sample_of(info.module)
    return mine is not None and mine.is_in(sample)


def _check_apart(found: Names) -> None:
    partners: dict[str, str] = {}
    # The outermost first, since that is the module that a pattern names.
    for path, name in sorted(found.items(), key=lambda pair: (pair[0].count("."), pair[0])):
        other = partners.setdefault(name, path)
        if not _is_nested(path, other):
            raise UsageError(
                f"--rename: {other} and {path} of the candidate would both answer to {name} of the reference; "
                "give each a reference module of its own"
            )


def _is_nested(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")


def _filled(new: str, groups: tuple[str, ...]) -> str:
    *components, rest = groups
    return re.sub(r"\*", lambda _: components.pop(0), new) + rest


def _hint(old: str, candidate: Tree) -> str:
    names = near(old.replace("*", "0"), candidate.below)
    tail = f"near: {', '.join(names)}" if names else "`qtrace modules` lists the paths"
    return f"the candidate has no module {old}; {tail}"


def same_path(reference: Tree, candidate: Tree) -> Names:
    """Return the paths that both sides have."""
    return {path: path for path in candidate.modules if path in reference}


def by_attribute(reference: Tree, candidate: Tree) -> Names:
    """Return the names that wrappers keep in an attribute.

    The attribute is inferred: on most modules that have it, its value is a reference path whose components occur in
    the module's own path. `activation = "relu"` beside a module `relu` is no such name, nor is a value that nearly
    all modules share.
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


def without_wrapper_components(reference: Tree, candidate: Tree, shifted: Names) -> Names:
    """Return the paths that equal a reference path once components that occur nowhere in the reference are dropped.

    `wrapped` and `_orig_mod` are such components. At the end of a path, a component is dropped only if it elsewhere
    stands before a known one: `q_proj.wrapped` is `q_proj` where there is a `wrapped.layers`, but
    `q_proj.weight_quantizer` is an added module. A module inside a container is paired with the container's partner
    only if it holds all pairs found inside: `layers.0.wrapped` holds as much as `layers.0`, but `layers.0.attn` is
    another name for one of its parts. `shifted` are the names of a tree that was moved as a whole.
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
        # An inner module must not be aligned with the root just because every component of its path is foreign.
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


def with_inserted_components(reference: Tree, candidate: Tree) -> Names:
    """Return the paths that equal a reference path without one component that always wraps a single module.

    This serves wrappers whose attribute has a name that the reference uses as well, such as `model` or `module`. The
    result is empty where unchanged names explain as much.
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
    """Return a path without the component `infix`, wherever that is an only child."""
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
    """Return the foreign components that stand before a known one in some path, directly or at a distance."""
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
