"""Pairs modules by place where no name or weight decides: around known pairs, between them; finds renumbering."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from qtrace.engine.align.module_info import ModuleInfo, Names, Tree
from qtrace.engine.align.weights import ALIKE, likeness, weight_of

# These are never called.
_LISTS = ("ModuleList", "ModuleDict")
# The reference paths of the pairs directly before and after; None at an end.
Anchors = tuple[str | None, str | None]


def enclosing(reference: Tree, candidate: Tree, names: Mapping[str, str], open_reference: Collection[str]) -> Names:
    """Return the containers that hold the same pairs: the nearest around all of them on either side.

    Two containers are paired only where every module paired inside one has its partner inside the other, and the
    reverse.
    """
    found: Names = {}
    # For each reference container the candidate paths that are paired inside it, and the reverse.
    held: dict[str, list[str]] = {}
    holds: dict[str, set[str]] = {}
    for path, name in names.items():
        if path and candidate[path].runs:
            for around in _ancestors(name):
                held.setdefault(around, []).append(path)
            for around in _ancestors(path):
                holds.setdefault(around, set()).add(name)
    # The innermost first: the nearest container around the same pairs is the partner.
    for name in sorted(open_reference, key=lambda path: -path.count(".")):
        inside = held.get(name, [])
        if len(inside) < 2 or reference[name].type in _LISTS:
            continue
        around = _common(inside)
        is_free = around in candidate.below and around not in names and around not in found
        if not is_free or not candidate[around].runs or candidate[around].type in _LISTS:
            continue
        if all(known.startswith(f"{name}.") for known in holds[around]):
            found[around] = name
    return found


def in_order(
    reference: Tree,
    candidate: Tree,
    names: Mapping[str, str],
    open_reference: Collection[str],
    open_candidate: Collection[str],
) -> Names:
    """Return pairs of open modules between the same anchors, where both sides have as many, and their types match.

    Also the one open module of its type in a container on either side, where others in there are paired. Order alone
    lies: two models may call k, v, q and q, k, v. So a pair whose weights can be read and are not alike is none, and
    where they cannot be read, both must at least be as large. The order is that of calls, where that is known.

    What then stands alone between two anchors on either side is a pair as well, whatever its class and its weights: its
    place leaves one way only. Both must be called equally often and hold equally many parameters.
    """
    found: Names = {}
    answered = {name: name for name in names.values()}
    around = tuple({holder for path in paths for holder in _ancestors(path)} for paths in (answered, names))
    for path, name in names.items():
        mine = _gaps(_run_in(reference, name, answered, around[0]), answered, open_reference)
        theirs = _gaps(_run_in(candidate, path, names, around[1]), names, open_candidate)
        # Without anchors there is nothing to stand between, unless all that is there corresponds one to one.
        whole = mine.pop((None, None), []), theirs.pop((None, None), [])
        if len(whole[0]) == len(whole[1]) and all(map(_leaves_one_way, *whole)):
            found |= {other.path: one.path for one, other in zip(*whole, strict=True)}
        for anchors, ones in mine.items():
            others = theirs.get(anchors, [])
            if len(ones) == len(others) and all(map(_may_be_one, ones, others)):
                found |= {other.path: one.path for one, other in zip(ones, others, strict=True)}
        taken = set(found.values())
        mine_left = [one for ones in mine.values() for one in ones if one.path not in taken]
        theirs_left = [other for others in theirs.values() for other in others if other.path not in found]
        for one in mine_left:
            matches = [other for other in theirs_left if _may_be_one(one, other)]
            if len(matches) == 1 and sum(_may_be_one(again, matches[0]) for again in mine_left) == 1:
                found[matches[0].path] = one.path
        for anchors, ones in mine.items():
            mine_open = [one for one in ones if one.path not in found.values()]
            theirs_open = [other for other in theirs.get(anchors, []) if other.path not in found]
            for one in mine_open:
                matches = [other for other in theirs_open if _is_of_one_class(one, other)]
                if len(matches) == 1 and sum(_is_of_one_class(again, matches[0]) for again in mine_open) == 1:
                    found[matches[0].path] = one.path
            mine_open = [one for one in mine_open if one.path not in found.values()]
            theirs_open = [other for other in theirs_open if other.path not in found]
            if len(mine_open) == len(theirs_open) == 1 and _leaves_one_way(mine_open[0], theirs_open[0]):
                found[theirs_open[0].path] = mine_open[0].path
    return found


def _is_of_one_class(reference: ModuleInfo, candidate: ModuleInfo) -> bool:
    names = reference.type.lower(), candidate.type.lower()
    return (names[0] in names[1] or names[1] in names[0]) and _leaves_one_way(reference, candidate)


def _leaves_one_way(reference: ModuleInfo, candidate: ModuleInfo) -> bool:
    """Return whether two modules that stand at one place may be partners: calls and parameters are as many."""
    if reference.type in _LISTS or candidate.type in _LISTS or reference.calls is None:
        return False
    return reference.calls == candidate.calls and _held(reference) == _held(candidate)


def _held(module: ModuleInfo) -> int:
    return sum(p.numel() for p in module.module.parameters()) if module.module is not None else 0


def _run_in(tree: Tree, path: str, names: Mapping[str, str], around: Collection[str]) -> list[ModuleInfo]:
    """Return the modules that run in a container, in order; a container without partner is seen through.

    Else a norm that one side has in a model of its own, below the head's, would stand in no common container.
    """
    found: list[ModuleInfo] = []
    waiting = list(reversed(tree.children(path)))
    while waiting:
        child = waiting.pop()
        if child.path not in names and child.path in around:
            waiting += reversed(tree.children(child.path))
        elif child.runs:
            found.append(child)
    return sorted(found, key=lambda module: module.first or 0)


def _gaps(
    children: Sequence[ModuleInfo], names: Mapping[str, str], is_open: Collection[str]
) -> dict[Anchors, list[ModuleInfo]]:
    """Return the open children by the reference paths of the paired children directly before and after them."""
    gaps: dict[Anchors, list[ModuleInfo]] = {}
    before: str | None = None
    waiting: list[ModuleInfo] = []
    for child in children:
        name = names.get(child.path)
        if name is not None:
            if waiting:
                gaps[before, name] = waiting
            before, waiting = name, []
        elif child.path in is_open:
            waiting.append(child)
    if waiting:
        gaps[before, None] = waiting
    return gaps


def _may_be_one(reference: ModuleInfo, candidate: ModuleInfo) -> bool:
    if reference.type in _LISTS or reference.type.lower() not in candidate.type.lower():
        return False
    if reference.calls is not None and candidate.calls is not None and reference.calls != candidate.calls:
        # A cell that is called step by step is no partner of a whole recurrent layer.
        return False
    alike = likeness(reference.module, candidate.module)
    if alike is not None:
        return alike >= ALIKE
    mine, theirs = weight_of(reference.module), weight_of(candidate.module)
    if mine is not None and theirs is not None and mine.shape[0] > 1 and mine.shape != theirs.shape:
        return _sizes(reference) == _sizes(candidate) != ()
    return True


def _sizes(module: ModuleInfo) -> tuple[int, ...]:
    """Return the sizes that a module has as attributes, such as the features of a linear layer."""
    names = ("in_features", "out_features", "in_channels", "out_channels")
    sizes = (getattr(module.module, name, None) for name in names)
    return tuple(size for size in sizes if isinstance(size, int))


def _ancestors(path: str) -> Iterator[str]:
    while path := path.rpartition(".")[0]:
        yield path


def _common(paths: Sequence[str]) -> str:
    """Return the nearest path around all of these."""
    parts = [path.split(".")[:-1] for path in paths]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)


def renumbered(reference: Tree, candidate: Tree, names: Mapping[str, str]) -> set[str]:
    """Return the candidate paths whose name is no evidence, since a number in it differs from the reference's count.

    That is so in a container with more or fewer numbered children than its partner has, where two children of one
    number contradict each other: different weights, a weight on one side only, different classes of torch's own.
    """
    lying = {path for path, name in names.items() if _lies(reference, candidate, path, name)}
    return {path for path in names if _is_counted_in(path, lying)}


def _lies(reference: Tree, candidate: Tree, path: str, name: str) -> bool:
    mine, theirs = _numbered(reference.children(name)), _numbered(candidate.children(path))
    if not mine or not theirs or len(mine) == len(theirs):
        return False
    return any(_contradict(mine[number], theirs[number]) for number in mine.keys() & theirs.keys())


def _numbered(children: list[ModuleInfo]) -> dict[str, ModuleInfo]:
    numbers = {child.path.rpartition(".")[2]: child for child in children}
    return {number: child for number, child in numbers.items() if number.isdigit()}


def _is_counted_in(path: str, containers: set[str]) -> bool:
    """Return whether the path contains a number that one of the containers assigns."""
    while path:
        path, _, last = path.rpartition(".")
        if last.isdigit() and path in containers:
            return True
    return False


def _contradict(reference: ModuleInfo, candidate: ModuleInfo) -> bool:
    mine, theirs = reference.module, candidate.module
    if mine is None or theirs is None:
        return False
    inside = dict(theirs.named_modules())
    for path, module in mine.named_modules():
        alike = likeness(module, inside.get(path))
        if alike is not None:
            return alike < ALIKE
    if candidate.type == "Identity":
        # A norm or a dropout may have been removed; a layer cannot.
        weight = weight_of(mine)
        return any(True for _ in mine.children()) or (weight is not None and len(weight) > 1)
    if reference.type.lower() in candidate.type.lower():
        # A `QuantReLU` holds scales where a `ReLU` holds nothing.
        return False
    if _has_values(mine) != _has_values(theirs):
        return True
    return reference.type != candidate.type and _is_plain(mine) and _is_plain(theirs)


def _has_values(module: torch.nn.Module) -> bool:
    """Return whether a module holds numbers of any kind; packed ones are behind a method named `weight`."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return True
    return any(callable(getattr(one, "weight", None)) for one in module.modules())


def _is_plain(module: torch.nn.Module) -> bool:
    """Return whether a module is a leaf of torch's own that holds no numbers, such as an activation."""
    own = type(module).__module__.startswith("torch.nn.modules")
    return own and not _has_values(module) and not any(True for _ in module.children())
