"""The events of a side, and the arguments of a call: bound to parameter names, paired across the two sides."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from qtrace.numerics import NoValues, plain
from qtrace.tree import Leaf, is_object, join, leaves, tensors


@dataclass(slots=True)
class Bound:
    """The arguments of one call: values by name, and the names in positional order.

    A positional argument without a name is called "*0", "*1", …; a parameter that was not passed has its default.
    `passed` holds the names that the caller gave.
    """

    values: dict[str, Any]
    positional: tuple[str, ...]
    passed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Signature:
    """The named parameters of a forward: positional ones in order, and the defaults of all."""

    positional: tuple[str, ...]
    defaults: Mapping[str, Any]
    named: bool

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bound:
        """Return the arguments by name; never raises, since the model itself reports a call that does not fit."""
        count = len(args)
        names = self.positional[:count]
        if count > len(names):
            names = (*names, *[f"*{i}" for i in range(len(names), count)])
        values = dict(zip(names, args, strict=True))
        values.update(kwargs)
        passed = frozenset(values)
        for name, default in self.defaults.items():
            if name not in values:
                values[name] = default
        return Bound(values, names, passed)


_NO_NAMES = Signature((), {}, False)


def signature_of(module: torch.nn.Module, inner: Iterable[torch.nn.Module] = ()) -> Signature:
    """Return the first signature with named parameters among the module's forward and those of the modules inside."""
    for candidate in (module, *inner):
        forward = candidate.forward
        found = _signature(getattr(forward, "__func__", forward), inspect.ismethod(forward))
        if found.named:
            return found
    return _NO_NAMES


@lru_cache(maxsize=4096)
def _signature(function: Callable[..., Any], is_method: bool) -> Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return _NO_NAMES
    if is_method and parameters:
        parameters = parameters[1:]
    positional = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    defaults = {p.name: p.default for p in named if p.default is not p.empty}
    return Signature(positional, defaults, bool(named))


@dataclass(slots=True, eq=False)
class Call:
    """One call of one module of one side.

    `path` is in the side's own names, and `key` is the reference path that it is aligned with (None without a
    partner). `index` counts the module's calls from 0; `caller` is the module whose code made the call. `entry` and
    `order` count the calls that the side had left when this one was entered and left: execution order, with arguments
    before the output. A `fresh` call returns a tensor that no other code holds. The module of a call that `has_data`
    has parameters or buffers of its own.
    """

    path: str
    key: str | None
    type: str
    index: int
    caller: str
    entry: int = 0
    order: int = 0
    fresh: bool = False
    has_data: bool = False


@dataclass(slots=True)
class Enter:
    """A call is about to run; `arguments` holds its arguments by name, `args` and `kwargs` as they were passed."""

    call: Call
    arguments: Bound
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exit:
    """A call has run; `value` is its output. `error` is set where it raised and the model goes on."""

    call: Call
    value: Any
    error: BaseException | None = None


@dataclass(slots=True)
class End:
    """The model has run; `error` is the exception that it raised, `module` the innermost module running then."""

    value: Any = None
    error: BaseException | None = None
    module: str = ""


@dataclass(slots=True)
class Pause:
    """The side was stopped between two events, by a debugger that steps through its code."""


@dataclass(slots=True)
class Replacement:
    """The value that replaces a side's own: (args, kwargs) at an entry, the returned value at an exit."""

    value: Any


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a side's code: the file, the line, and the function around it."""

    file: str
    line: int
    function: str


Event = Enter | Exit | End


class Missing:
    """Stands for a leaf that one side does not have."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()
LeafPair = tuple[str, Any, Any]


def match_leaves(reference: list[Leaf], candidate: list[Leaf]) -> list[LeafPair]:
    """Return the pairs of two lists of leaves: by path first; the remaining tensors by order, where their shapes agree.

    The order rule pairs a `ModelOutput` with a plain tuple. A leaf that still has no partner is paired with
    `MISSING`; a None without a partner is dropped.
    """
    if len(reference) == 1 and len(candidate) == 1:
        return [(reference[0][0], reference[0][1], candidate[0][1])]
    if [path for path, _ in reference] == [path for path, _ in candidate]:
        pairs = [(path, mine, theirs) for (path, mine), (_, theirs) in zip(reference, candidate, strict=True)]
        return [pair for pair in pairs if not (pair[1] is None and pair[2] is None)]
    theirs = dict(candidate)
    pairs = [(path, leaf, theirs.pop(path, MISSING)) for path, leaf in reference]
    for position, (path, leaf, partner) in enumerate(pairs):
        if partner is MISSING and isinstance(leaf, torch.Tensor):
            for name, other in theirs.items():
                if isinstance(other, torch.Tensor) and other.shape == leaf.shape:
                    pairs[position] = (path, leaf, theirs.pop(name))
                    break
    pairs.extend((path, MISSING, leaf) for path, leaf in theirs.items())
    return [pair for pair in pairs if not _is_nothing(pair)]


def match_arguments(reference: Bound, candidate: Bound) -> Iterator[tuple[str, Any, Any]]:
    """Yield the pairs of argument values of one call, under the reference's parameter names.

    Names that both sides know pair first. Then positional arguments pair by position, where both have one form (the
    shapes of their tensors, axes of size 1 aside), since wrappers rename them: `Linear.input` stands against
    `QuantLinear.x`. Tensors that are still left pair by what they are, whatever they are called and whether they are
    passed by keyword or by position, alone or in a tuple; see `_by_form`. Of the rest, what stands at one position
    pairs; what only one side has stands against `MISSING`, and counts where it holds a tensor.
    """
    if reference.values.keys() == candidate.values.keys():
        for name, value in reference.values.items():
            yield name, value, candidate.values[name]
        return
    theirs = dict(candidate.values)
    mine: dict[str, Any] = {}
    for name, value in reference.values.items():
        if name in theirs:
            yield name, value, theirs.pop(name)
        else:
            mine[name] = value
    for name, value in list(mine.items()):
        partner = _at_same_position(name, reference, candidate)
        if partner in theirs and _form(value) == _form(theirs[partner]):
            yield name, mine.pop(name), theirs.pop(partner)
    left, right = _named_tensors(mine), _named_tensors(theirs)
    pairs = _by_form(left, right)
    paired = {left[i][0] for i, _ in pairs}, {right[j][0] for _, j in pairs}
    yield from ((left[i][1], left[i][2], right[j][2]) for i, j in pairs)
    for name, value in mine.items():
        partner = _at_same_position(name, reference, candidate)
        if name in paired[0]:
            # The other tensors of a tuple of which some have a partner.
            used = {left[i][1] for i, _ in pairs}
            yield from ((path, leaf, MISSING) for owner, path, leaf in left if owner == name and path not in used)
        elif partner in theirs and partner not in paired[1]:
            yield name, value, theirs.pop(partner)
        elif tensors(value):
            yield name, value, MISSING
    used = {right[j][1] for _, j in pairs}
    for name, value in theirs.items():
        if name in paired[1]:
            yield from ((path, MISSING, leaf) for owner, path, leaf in right if owner == name and path not in used)
        elif tensors(value):
            yield name, MISSING, value


def argument_leaves(name: str, reference: Any, candidate: Any) -> list[LeafPair]:
    """Return the pairs of leaves of one argument; paths begin with its name."""
    if isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor):
        return [(name, reference, candidate)]
    if candidate is MISSING:
        return [(join(name, path), leaf, MISSING) for path, leaf in tensors(reference)]
    if reference is MISSING:
        return [(join(name, path), MISSING, leaf) for path, leaf in tensors(candidate)]
    return [
        (join(name, path), mine, theirs) for path, mine, theirs in match_leaves(leaves(reference), leaves(candidate))
    ]


def _at_same_position(name: str, reference: Bound, candidate: Bound) -> str | None:
    if name in reference.positional:
        position = reference.positional.index(name)
        if position < len(candidate.positional):
            return candidate.positional[position]
    return None


def _named_tensors(values: Mapping[str, Any]) -> list[tuple[str, str, torch.Tensor]]:
    """Return the tensors among arguments as (argument, path, tensor); a path begins with the argument's name.

    What an object holds, such as a cache, are no arguments of their own.
    """
    plain_values = ((name, value) for name, value in values.items() if not is_object(value))
    return [(name, join(name, path), leaf) for name, value in plain_values for path, leaf in tensors(value)]


def _by_form(
    reference: Sequence[tuple[str, str, torch.Tensor]], candidate: Sequence[tuple[str, str, torch.Tensor]]
) -> list[tuple[int, int]]:
    """Return the pairs, as places in both lists, of tensors that are the same argument under different names.

    Only tensors of one form pair. Where a form stands once on each side, these two are partners. Where it stands
    several times, those of equal values are, if no other tensor of that form has these values; two masks of ones are
    not told apart by value. What is left pairs in order, if both sides have equally many of that form.
    """
    found: list[tuple[int, int]] = []
    left, right = list(range(len(reference))), list(range(len(candidate)))
    # A mask of bools may stand against an additive one: what is left after the first round may differ in its dtype.
    for form_of in (_form, lambda leaf: _form(leaf)[0]):
        forms: dict[Any, tuple[list[int], list[int]]] = {}
        for places, named, side in ((left, reference, 0), (right, candidate, 1)):
            for place in places:
                forms.setdefault(form_of(named[place][2]), ([], []))[side].append(place)
        for first, second in forms.values():
            if len(first) > 1 or len(second) > 1:
                equal = [(i, j) for i in first for j in second if _has_equal_values(reference[i][2], candidate[j][2])]
                once = [pair for pair in equal if all(pair == other or not _meet(pair, other) for other in equal)]
                found += once
                first = [i for i in first if i not in {i for i, _ in once}]
                second = [j for j in second if j not in {j for _, j in once}]
            if len(first) == len(second):
                found += zip(first, second, strict=True)
        left = [i for i in left if i not in {i for i, _ in found}]
        right = [j for j in right if j not in {j for _, j in found}]
    return sorted(found)


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two pairs have a place in common."""
    return one[0] == other[0] or one[1] == other[1]


def _has_equal_values(reference: torch.Tensor, candidate: torch.Tensor) -> bool:
    """Return whether two tensors of one form hold the same values, up to rounding."""
    try:
        first, second = plain(reference), plain(candidate)
    except NoValues:
        return False
    second = second.reshape(first.shape) if first.numel() == second.numel() else second
    if first.shape != second.shape:
        return False
    return bool(
        torch.allclose(first.to(torch.float64), second.to(torch.float64).to(first.device), rtol=1e-4, atol=1e-6)
    )


def _form(value: Any) -> Any:
    """Return the form of an argument: the shapes of its tensors without axes of size 1, and what they count in."""
    if isinstance(value, torch.Tensor):
        # A nested tensor has no shape. The order of axes is a matter of layout.
        sizes = () if value.is_nested else tuple(sorted(size for size in value.shape if size != 1))
        return sizes, value.is_floating_point(), value.dtype is torch.bool
    return tuple(_form(leaf) for _, leaf in tensors(value))


def _is_nothing(pair: LeafPair) -> bool:
    return all(leaf is None or leaf is MISSING for leaf in pair[1:])
