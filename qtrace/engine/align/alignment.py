"""Pairs each module of the candidate with a module of the reference, by rules in order of trust."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from qtrace.engine.align.fusion import Fusion, experts, fusions, grown, projections
from qtrace.engine.align.module_info import Alignment, ModuleInfo, Names, Tree
from qtrace.engine.align.names import (
    by_attribute,
    overruled_renames,
    prefix_shift,
    rename_doubts,
    renamed,
    same_path,
    with_inserted_components,
    without_wrapper_components,
)
from qtrace.engine.align.places import enclosing, in_order, renumbered
from qtrace.engine.align.weights import by_weights
from qtrace.report.records import Pairing

# Pairs that are inferred only from the place may be wrong; all others come from names, weights or the user.
_LOW = ("enclosing", "order")
_BY_PATH = ("prefix", "exact", "stripped")


def align(
    reference: Sequence[ModuleInfo],
    candidate: Sequence[ModuleInfo],
    renames: Mapping[str, str] | None = None,
    *,
    denied: Collection[str] = (),
) -> Alignment:
    """Return the pairs of the candidate's modules with the reference's; the roots always form a pair.

    The first rule that applies makes the pair; the most trusted rule comes first:

    1. `renamed`: the user gives the pair.
    2. `name_attribute`: a wrapper keeps the reference's path in an attribute.
    3. `prefix`: the whole tree was moved, where this explains clearly more than unchanged names do; else
       `exact`: the same path.
    4. `stripped`: the same path without the components that only the candidate has, or without one that wraps a
       single module each time it occurs.

    Numbers in a path are not trusted where a container was renumbered (see `renumbered`), nor are paths that would
    pair a module with one of `denied`. A reference module that the user gave a partner gets no other one.
    By these rules, several candidate modules may be aligned with one of the reference: a wrapper and the module inside
    it. At run time the outer one counts (`LiveSide` ensures it); modules that never run do not matter. Then `fused`
    replaces pairs by name of modules that the candidate computes in one. For a module without a partner that runs,
    one partner is searched for by `weights`, by the pairs that it holds (`enclosing`) and by its place (`order`).

    Raises `UsageError` for a pattern of `renames` that matches nothing.
    """
    mine, theirs = Tree(reference), Tree(candidate)
    shifted = prefix_shift(mine, theirs)
    found: dict[str, tuple[str, str]] = {"": ("", "exact")}
    given = renamed(mine, theirs, renames or {})
    for rule, names in (
        ("renamed", given),
        ("name_attribute", by_attribute(mine, theirs)),
        ("prefix", shifted) if shifted else ("stripped", with_inserted_components(mine, theirs)),
        ("exact", {} if shifted else same_path(mine, theirs)),
        ("stripped", without_wrapper_components(mine, theirs, shifted)),
    ):
        for path, name in names.items():
            found.setdefault(path, (name, rule))
    for path in overruled_renames(given, _names(found)):
        del found[path]
    by_path = {path: name for path, (name, rule) in found.items() if rule in _BY_PATH}
    for path in renumbered(mine, theirs, by_path) | {path for path, name in by_path.items() if name in denied}:
        del found[path]
    fused: dict[str, str] = {}
    split: dict[str, tuple[str, ...]] = {}
    for fusion in fusions(mine, theirs, _names(found)):
        _apply(fusion, found, fused)
    if _open(mine, theirs, found, fused)[0]:
        _find_the_rest(mine, theirs, found, fused, split)
    pairs = {
        path: Pairing(
            reference=found[path][0],
            candidate=path,
            rule=found[path][1],
            confidence="low" if found[path][1] in _LOW else "high",
            reference_type=mine[found[path][0]].type,
            candidate_type=module.type,
        )
        for path, module in theirs.modules.items()
        if path in found
    }
    taken = {pair.reference for pair in pairs.values()}
    alone = tuple(path for path in mine.modules if path not in taken)
    return Alignment(pairs, alone, fused, split, rename_doubts(mine, theirs, given))


def _find_the_rest(
    mine: Tree,
    theirs: Tree,
    found: dict[str, tuple[str, str]],
    fused: dict[str, str],
    split: dict[str, tuple[str, ...]],
) -> None:
    """Pair the modules that names left open: by value, then by place, then by place again around the new pairs."""
    open_reference, open_candidate = _open(mine, theirs, found, fused)
    by_value = by_weights([mine[p] for p in open_reference], [theirs[p] for p in open_candidate])
    _add("weights", by_value, found)
    for fusion in fusions(mine, theirs, _names(found)) if by_value else ():
        _apply(fusion, found, fused)
    parts = _stacked(mine, theirs, found, fused, split)
    for _ in range(2):
        open_reference, open_candidate = _open(mine, theirs, found, fused)
        _add("enclosing", enclosing(mine, theirs, parts | _names(found), open_reference), found)
        open_reference, open_candidate = _open(mine, theirs, found, fused)
        _add("order", in_order(mine, theirs, _names(found), open_reference, open_candidate), found)


def _stacked(
    mine: Tree,
    theirs: Tree,
    found: dict[str, tuple[str, str]],
    fused: dict[str, str],
    split: dict[str, tuple[str, ...]],
) -> Names:
    """Note whose weights stand on top of each other, on either side; of such a pair the name is that of a part.

    Return which candidate path holds the weights of which reference path, whole or in part: no pairs, but what is
    around them may be one.
    """
    held: Names = {}
    open_reference, open_candidate = _open(mine, theirs, found, fused)
    by_path = {path: name for path, (name, rule) in found.items() if rule in _BY_PATH}
    larger = grown(mine, theirs, by_path, open_reference)
    parts, wholes = {*open_reference, *larger.values()}, [*open_candidate, *larger]
    for members, path in projections(mine, theirs, parts, wholes):
        found.pop(path, None)
        fused |= dict.fromkeys(members, path)
        held[path] = members[0]
    for members, path in experts(mine, theirs, _open(mine, theirs, found, fused)[0]):
        fused |= dict.fromkeys(members, path)
        held[path] = members[0]
    for members, path in projections(theirs, mine, open_candidate, _open(mine, theirs, found, fused)[0]):
        split[path] = members
        held |= dict.fromkeys(members, path)
    return held


def _apply(fusion: Fusion, found: dict[str, tuple[str, str]], fused: dict[str, str]) -> None:
    """Pair the group's last module with the module that returns its output, and leave the others without a partner.

    Of norms that were folded away, only those without any partner are noted.
    """
    *others, last = fusion.members
    if fusion.folds:
        answered = {name for name, _ in found.values()}
        fused |= {name: fusion.candidate for name in fusion.members if name not in answered}
        return
    for path, (name, _) in list(found.items()):
        if name in fusion.members:
            del found[path]
    found[fusion.last] = (last, "fused")
    fused |= dict.fromkeys(others, fusion.candidate)


def _add(rule: str, names: Names, found: dict[str, tuple[str, str]]) -> None:
    for path, name in names.items():
        found.setdefault(path, (name, rule))


def _names(found: Mapping[str, tuple[str, str]]) -> Names:
    return {path: name for path, (name, _) in found.items()}


def _open(
    mine: Tree, theirs: Tree, found: Mapping[str, tuple[str, str]], fused: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the reference paths without a partner that runs, and the candidate paths without a partner."""
    taken = {name for path, (name, _) in found.items() if theirs[path].runs}
    return (
        [path for path, module in mine.modules.items() if module.runs and path not in taken and path not in fused],
        [path for path, module in theirs.modules.items() if module.runs and path not in found],
    )
