"""Pairs and compares the leaves of both sides' values, by path or name, and holds them by pair of calls."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from qtrace.engine.events import Bound, Call, Site
from qtrace.numerics import Measurement, Metrics, NoValues, describe, measure, plain
from qtrace.numerics.relations import (
    FILL,
    VISIBLE,
    excuses,
    explanation,
    masked_positions,
    presumed_layout,
    relate,
    undo_layout,
    with_layout_undone,
)
from qtrace.numerics.tolerance import Place
from qtrace.report.records import Relation, Statistics, Status, TensorSpec
from qtrace.tree import Leaf, is_object, join, leaves, tensors


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


@dataclass(slots=True)
class Pair:
    """The comparison of two leaves; `measurement` is None where nothing could be measured, and `status` says why.

    `layout` is the layout that was undone before the pair was measured. `relation` is all that is known of how the
    two are related; its parameters include the layout's.
    """

    reference: TensorSpec | None
    candidate: TensorSpec | None
    measurement: Measurement | None = None
    relation: Relation | None = None
    layout: Relation | None = None
    status: Status | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    empty: bool = False
    non_finite_same: torch.Tensor | None = None
    explained: bool = False
    _statistics: Statistics | None = None

    def is_brief(self) -> bool:
        """Return whether only the range and the PEIR were measured."""
        return self.measurement is not None and self.measurement.metrics == "range"

    def measure(self, reference: torch.Tensor, candidate: torch.Tensor) -> None:
        """Measure all metrics of tensors of which only the range was measured before."""
        self.measurement, self._statistics = measure(reference, candidate), None

    def has_same_non_finite(self) -> bool | None:
        """Return whether NaN, Inf and -Inf are at the same places on both sides; None where there are none."""
        if self.statistics().non_finite is None:
            return None
        return self.non_finite_same is not None and bool(self.non_finite_same)

    @property
    def convention(self) -> Relation | None:
        """Return the relation under which the candidate holds the reference's values; None where it does not.

        For a clipped, rounded or shifted tensor, or one that differs in places, it is the layout that was undone.
        """
        return self.relation if excuses(self.relation) else self.layout

    def peir_related(self) -> float | None:
        """Return the PEIR that remains under the convention, None where there is none."""
        if self.convention is None:
            return None
        return self.statistics().peir if self.convention.kind == "layout" else self.convention.error

    def statistics(self) -> Statistics:
        """Return the numbers; the status is the pair's own where nothing was measured."""
        if self._statistics is None:
            if self.measurement is None:
                self._statistics = Statistics(status=self.status or Status.STRUCTURE_MISMATCH)
            else:
                self._statistics = self.measurement.result()
        return self._statistics


# The channel axes of the reference's and of the candidate's module: 1 or -1.
Channels = tuple[int, int]
_CHANNELS_FIRST = ("Conv1d", "Conv2d", "Conv3d", "BatchNorm", "GroupNorm", "InstanceNorm")
_CHANNELS_LAST = ("Linear", "LayerNorm", "Conv1D")


class PairComparer:
    """Compares leaves; a pair of tensors that was compared before, and is unchanged since, is not compared again.

    Tensors are recognised by identity and version counter; weak references guard against reused ids.
    Inference tensors have no version counter and are compared each time.
    """

    def __init__(self, hidden: torch.Tensor | None = None) -> None:
        # The positions [batch, tokens] that a mask among the inputs hides.
        self._hidden = hidden
        self._compared_references: dict[int, Any] = {}
        self._known: dict[tuple[int, int], tuple[Any, Any, int, int, Pair]] = {}
        # Tensors that visibly differ would be measured twice, which would cost more than brevity saves.
        self._may_be_brief = True

    def compare(
        self, reference: Any, candidate: Any, *, brief: bool = False, channels: Channels | None = None
    ) -> Pair | None:
        """Return the comparison, or None where two plain values are equal: there is nothing to tell.

        A brief comparison of tensors that hardly differ has only their range and PEIR, which take half the time.
        """
        if isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor):
            brief = brief and self._may_be_brief
            known = self._known_pair(reference, candidate)
            if known is not None and (brief or not known.is_brief()):
                return known
            return self._compared(reference, candidate, brief, channels)
        if _is_number(reference) and _is_number(candidate):
            if reference == candidate:
                return None
            pair = _measured(torch.tensor(reference), torch.tensor(candidate))
            return replace(pair, reference=spec_of(reference), candidate=spec_of(candidate))
        if _same_plain(reference, candidate):
            return None
        status = Status.STRUCTURE_MISMATCH
        if candidate is MISSING:
            status = Status.REFERENCE_ONLY
        elif reference is MISSING:
            status = Status.CANDIDATE_ONLY
        return Pair(spec_of(reference, values=True), spec_of(candidate, values=True), status=status)

    def was_compared(self, reference: torch.Tensor) -> bool:
        """Return whether this tensor of the reference was compared before, wherever that was."""
        held = self._compared_references.get(id(reference))
        return held is not None and held() is reference

    def is_explicable(self, pair: Pair, reference: Any, candidate: Any) -> bool:
        """Return whether `explain` applies: both are tensors on the CPU, and no relation was searched for yet.

        The numbers of such a pair can be read without waiting for an accelerator.
        """
        tensors = isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor)
        return tensors and pair.measurement is not None and not pair.explained and _is_at_hand(reference, candidate)

    def explain(self, pair: Pair, reference: torch.Tensor, candidate: torch.Tensor, tolerance: float) -> None:
        """Search for how a pair that does not agree is related, and store the result in `pair.relation`.

        Args:
            pair: the result of `compare` for these two tensors.
            reference: unchanged since then.
            candidate: unchanged since then.
            tolerance: the PEIR up to which elements agree.

        A pair is examined once; a pair that is not explicable, is related already, or holds NaN or Inf stays
        unchanged. The search takes as long as 10 to 40 measurements, so it is for pairs that matter.
        """
        if not self.is_explicable(pair, reference, candidate):
            return
        pair.explained = True
        if pair.empty or (pair.relation is not None and pair.relation.kind != "layout"):
            return
        how = pair.layout.parameters if pair.layout is not None else {}
        first, second = plain(reference), plain(candidate)
        relaid = with_layout_undone(second, first.shape, how)
        if relaid is None:
            return
        if pair.is_brief():
            pair.measure(first, relaid)
        relation = None
        if self._hidden is not None:
            relation = masked_positions(first, relaid, self._hidden, tolerance)
        if relation is None:
            relation = explanation(first, relaid, pair.statistics(), tolerance)
        if relation is not None:
            pair.relation = replace(relation, parameters={**how, **relation.parameters})

    def _known_pair(self, reference: torch.Tensor, candidate: torch.Tensor) -> Pair | None:
        entry = self._known.get((id(reference), id(candidate)))
        if entry is None or entry[0]() is not reference or entry[1]() is not candidate:
            return None
        if entry[2] != reference._version or entry[3] != candidate._version:
            return None
        return entry[4]

    def _compared(
        self, reference: torch.Tensor, candidate: torch.Tensor, brief: bool, channels: Channels | None
    ) -> Pair:
        pair = _measured(reference, candidate, "range" if brief else "all", channels)
        if brief and not pair.is_brief():
            self._may_be_brief = False
        if not (reference.is_inference() or candidate.is_inference()):
            held = weakref.ref(reference)
            self._compared_references[id(reference)] = held
            self._known[id(reference), id(candidate)] = (
                held,
                weakref.ref(candidate),
                reference._version,
                candidate._version,
                pair,
            )
        return pair


def spec_of(leaf: Any, *, values: bool = False) -> TensorSpec | None:
    """Return the spec of a leaf; with `values` also the smallest and largest element, at the cost of reading it."""
    if leaf is MISSING:
        return None
    if not isinstance(leaf, torch.Tensor):
        return TensorSpec(type=type(leaf).__name__, value=repr(leaf)[:200])
    if leaf.is_nested:
        return TensorSpec(None, None, type(leaf).__name__, "nested tensor")
    spec = _tensor_spec(leaf.shape, leaf.dtype, type(leaf))
    if values:
        with contextlib.suppress(NoValues):
            summary = describe(leaf)
            spec = replace(spec, min=summary.min, max=summary.max)
    return spec


@lru_cache(maxsize=4096)
def _tensor_spec(shape: torch.Size, dtype: torch.dtype, kind: type) -> TensorSpec:
    name = "Tensor" if kind in (torch.Tensor, torch.nn.Parameter) else kind.__name__
    return TensorSpec(tuple(shape), str(dtype).removeprefix("torch."), name)


def _same_plain(reference: Any, candidate: Any) -> bool:
    """Return whether two plain values mean the same; None and False both mean "no" (`use_cache=None`)."""
    if isinstance(reference, torch.Tensor) or isinstance(candidate, torch.Tensor):
        return False
    off = (None, False)
    both_nan = reference != reference and candidate != candidate
    return bool(reference == candidate) or both_nan or (reference in off and candidate in off)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float)) and abs(leaf) < 2**63  # False for NaN, too


def _measured(
    reference: torch.Tensor, candidate: torch.Tensor, metrics: Metrics = "all", channels: Channels | None = None
) -> Pair:
    """Compare two tensors; where the range alone shows that they may matter, all metrics are measured after all."""
    dtypes = (reference.dtype, candidate.dtype)
    try:
        first, second = plain(reference), plain(candidate)
    except NoValues:
        return Pair(spec_of(reference), spec_of(candidate), status=Status.STRUCTURE_MISMATCH, dtypes=dtypes)
    layout = None
    if first.shape != second.shape:
        undone = undo_layout(first, second) or presumed_layout(first, second)
        if undone is None:
            specs = spec_of(reference, values=True), spec_of(candidate, values=True)
            return Pair(*specs, status=Status.SHAPE_MISMATCH, dtypes=dtypes)
        second, layout = undone
    elif channels is not None and (undone := _with_channels_moved(first, second, channels)) is not None:
        second, layout = undone
    floating = first.is_floating_point() and second.is_floating_point()
    at_hand = _is_at_hand(first)
    if not (floating and at_hand):
        metrics = "all"
    measurement = measure(first, second, metrics=metrics)
    pair = Pair(spec_of(reference), spec_of(candidate), measurement, layout, layout, dtypes=dtypes)
    pair.empty = first.numel() == 0
    if not floating:
        if at_hand and second.numel() and measurement.sums().max:
            # For positions and ids the values say more than the shape.
            pair.reference, pair.candidate = spec_of(reference, values=True), spec_of(candidate, values=True)
        return pair
    if not at_hand:
        # The numbers are not available yet, and waiting for them would stop the accelerator at every module.
        pair.non_finite_same = _same_non_finite(first, second)
        return pair
    sums = measurement.sums()
    visible = not sums.max <= VISIBLE * (sums.high - sums.low)
    filled = sums.max > 0 and sums.low < FILL
    if visible or filled or sums.bad_reference or sums.bad_candidate:
        if metrics != "all":
            pair.measure(first, second)
        _relate(pair, first, second)
    return pair


def channels_of(reference: str, candidate: str) -> Channels | None:
    """Return the channel axes of two modules by their class names, where one counts them first and the other last.

    A linear layer computes along the last axis, a convolution along the second one: where one stands in the place of
    the other, their tensors are in two layouts, also where the shapes do not show it.
    """
    sides = tuple(
        1
        if any(name in kind for name in _CHANNELS_FIRST)
        else -1
        if any(name in kind for name in _CHANNELS_LAST)
        else 0
        for kind in (reference, candidate)
    )
    return (sides[0], sides[1]) if 0 not in sides and sides[0] != sides[1] else None


def _with_channels_moved(
    reference: torch.Tensor, candidate: torch.Tensor, channels: Channels
) -> tuple[torch.Tensor, Relation] | None:
    """Return the candidate with its channels where the reference has them; None where it agrees as it is."""
    if reference.dim() < 3 or 1 in reference.shape or not reference.is_floating_point():
        return None
    if not measure(reference, candidate, metrics="range").sums().max:
        return None
    axes = list(range(candidate.dim()))
    axes.insert(channels[0] % len(axes), axes.pop(channels[1]))
    moved = candidate.permute(axes)
    if moved.shape != reference.shape:
        return None
    return moved, Relation("layout", {"permute": axes, "presumed": True})


def _relate(pair: Pair, first: torch.Tensor, second: torch.Tensor) -> None:
    """Search for a relation that explains a visible difference, or values that are not finite."""
    found = pair.statistics()
    if found.non_finite is not None:
        pair.non_finite_same = _same_non_finite(first, second)
    relation = relate(first, second, found, thorough=False)
    if relation is not None:
        how = pair.layout.parameters if pair.layout is not None else {}
        pair.relation = replace(relation, parameters={**how, **relation.parameters})


def _is_at_hand(*tensors: torch.Tensor) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _same_non_finite(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return, as a tensor of one bool, whether both hold the same NaN, Inf and -Inf at the same places."""
    codes = []
    for tensor in (first, second.to(first.device)):
        code = torch.isnan(tensor).to(torch.int8) * 3
        codes.append(code + torch.isposinf(tensor).to(torch.int8) + torch.isneginf(tensor).to(torch.int8) * 2)
    return (codes[0] == codes[1]).all()


@dataclass(slots=True)
class ObjectPair:
    """Two objects, such as caches, that a call received on either side, and the tensors that the first one held."""

    name: str
    reference: Any
    candidate: Any
    held: set[tuple[int, int]]


@dataclass(slots=True, eq=False)
class CallPair:
    """A call of both sides, or a call without a partner (`candidate` is None, or `reference` is).

    `parent` is the pair of calls that it ran inside. `sites` are the places in both sides' code that made the call,
    where they were requested. `kept` are the outputs that differ but are internal to the model (caches), with their
    convention. Pairs may still have their numbers on an accelerator; they are read when the run is over.
    """

    reference: Call | None
    candidate: Call | None
    parent: CallPair | None = None
    arguments: list[tuple[str, Pair]] = field(default_factory=list)
    outputs: list[tuple[str, Pair]] = field(default_factory=list)
    forced: set[str] = field(default_factory=set)
    argument_ids: set[int] = field(default_factory=set)
    sites: tuple[Site | None, Site | None] = (None, None)
    handed: list[ObjectPair] = field(default_factory=list)
    kept: dict[str, Relation | None] = field(default_factory=dict)
    raised: bool = False
    ended: bool = False

    @property
    def call(self) -> Call:
        """Return the reference's call, or the candidate's where there is none."""
        call = self.reference if self.reference is not None else self.candidate
        assert call is not None
        return call


def place(met: CallPair, mark: str, name: str) -> Place:
    """Return the key of one value of a call among the noise floors; `mark` distinguishes arguments from outputs."""
    return met.call.key or "", met.call.index, mark + name
