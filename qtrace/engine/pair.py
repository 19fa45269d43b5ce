"""Two leaves that stand against each other, compared; and two calls with all that stands on either side."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from qtrace.engine.events import MISSING, Call, Site
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
        self._compared_references: dict[int, tuple[Any, int]] = {}
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
        """Return whether this tensor of the reference was compared as it is now, wherever that was."""
        held, version = self._compared_references.get(id(reference), (None, -1))
        return held is not None and held() is reference and reference._version == version

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
            if pair.measurement is not None:
                self._compared_references[id(reference)] = (held, reference._version)
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
    """Return the candidate with its channels where the reference has them; None where it is closer as it is."""
    if reference.dim() < 3 or 1 in reference.shape or not reference.is_floating_point():
        return None
    as_it_is = measure(reference, candidate).result()
    if not as_it_is.max:
        return None
    axes = list(range(candidate.dim()))
    axes.insert(channels[0] % len(axes), axes.pop(channels[1]))
    moved = candidate.permute(axes)
    if moved.shape != reference.shape:
        return None
    # A module that moves the channels itself has the reference's layout outside, whatever its class is called.
    likeness = [found.cosine or 0.0 for found in (as_it_is, measure(reference, moved).result())]
    return None if likeness[0] >= likeness[1] else (moved, Relation("layout", {"permute": axes, "presumed": True}))


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
