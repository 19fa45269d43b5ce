"""Collects what the comparison of two sides finds: rows, arguments that differ, and calls that were not compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qtrace.engine.events import (
    Call,
    Enter,
    Exit,
    LeafPair,
    Replacement,
    Site,
    argument_leaves,
    match_arguments,
    match_leaves,
)
from qtrace.engine.forcing import IN, OUT, Forcing, LeafPairs
from qtrace.engine.lockstep import REFERENCE
from qtrace.engine.pair import CallPair, Channels, ObjectPair, Pair, PairComparer, channels_of, place, spec_of
from qtrace.numerics import NoValues, plain
from qtrace.numerics.relations import excuses, relate
from qtrace.numerics.tolerance import Floors, Place
from qtrace.report.records import Argument, Relation, Row, Statistics, Status, Verdict
from qtrace.tree import is_object, join, leaves, objects, tensors

# A local error comes from few roundings, whatever the depth.
LOCAL_DEPTH = 15
# Where this many tensors are in no known convention, the others are not examined: the cache as a whole differs.
_MOST_UNRELATED = 2
# A relative L2 error above this is not noise; that of five bits is below.
_MOST_NOISE = 0.1
# A relation is searched for where a pair differs by more than this; of the other pairs, for at most so many in a pass.
_WORTH_ASKING = 0.05
_MOST_ASKED = 64


CachePairs = list[tuple[str, Any, Any, Pair]]


def inside(caches: Iterable[str], pairs: CachePairs) -> CachePairs:
    """Return the pairs that lie in one of the objects at these paths."""
    beginnings = tuple(f"{path}." for path in caches)
    return [pair for pair in pairs if pair[0].startswith(beginnings)]


def conventions(pairs: CachePairs, *, noise: float = 0.0) -> dict[str, Relation]:
    """Return, by path, the convention in which the candidate holds the same values; other pairs are left out.

    In a tensor [batch, heads, tokens, channels], heads also count as channels. `noise` is the relative L2 error of
    the outputs beside the cache, as under quantization: one factor may leave as much.
    """
    found: dict[str, Relation] = {}
    unrelated = 0
    for path, mine, theirs, pair in pairs:
        relation = _convention(mine, theirs, pair.statistics()) or _noisy_gain(mine, theirs, noise)
        if relation is not None:
            found[path] = relation
            continue
        off = pair.statistics().rel_l2
        if off is not None and off <= min(noise, _MOST_NOISE):
            continue
        unrelated += 1
        if unrelated == _MOST_UNRELATED:
            break
    return found


def _convention(reference: Any, candidate: Any, found: Statistics) -> Relation | None:
    if not (isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor)):
        return None
    try:
        mine, theirs = plain(reference), plain(candidate)
    except NoValues:
        return None
    if mine.shape != theirs.shape or not mine.is_cpu or not theirs.is_cpu:
        return None
    relation = relate(mine, theirs, found, thorough=True)
    if not excuses(relation) and mine.dim() == 4:
        relation = relate(_heads_as_channels(mine), _heads_as_channels(theirs), found, thorough=True)
        if relation is not None:
            relation = replace(relation, parameters={**relation.parameters, "heads": "as channels"})
    return relation if excuses(relation) else None


def _noisy_gain(reference: Any, candidate: Any, noise: float) -> Relation | None:
    """Return the gain that leaves at most `noise`, as a relative L2 error, of the candidate's values; else None."""
    try:
        mine, theirs = (plain(side).double().flatten() for side in (reference, candidate))
    except (NoValues, AttributeError):
        return None
    size, reached = float(mine.dot(mine)), float(theirs.norm())
    if mine.shape != theirs.shape or not size > 0 or not reached > 0:
        return None
    factor = float(mine.dot(theirs)) / size
    left = float((theirs - factor * mine).norm()) / reached
    # A factor that differs from 1 by no more than noise is no convention.
    if not left <= min(noise, _MOST_NOISE) or not abs(factor - 1) > max(noise, _MOST_NOISE):
        return None
    return Relation("gain", {"factor": factor}, left)


def _heads_as_channels(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2).flatten(2)


@dataclass(slots=True)
class Comparison:
    """Collects one sample's run; `rows()` and `arguments()` return the results, after the run.

    `met` has an entry per call, in the order in which the calls were paired. `compared` counts the reference calls
    (except the root's) of which an output could be compared, and `reasons` why others could not. `forcing`, if set,
    decides which of the reference's tensors the candidate receives. `sites` returns where both sides are in their
    code. The modules of `outputs_only` (reference paths) take other arguments than their partners: these are neither
    compared nor forced. `comparer` measures one pair of leaves. `is_entry` says whether the caller gets the root's
    output itself, and not that of another method around it.
    """

    sample: int = 0
    is_entry: bool = True
    selected: Callable[[str], bool] = lambda path: True
    floors: Floors = field(default_factory=Floors)
    progress: Callable[[], None] | None = None
    forcing: Forcing | None = None
    sites: Callable[[], tuple[Site | None, Site | None]] | None = None
    outputs_only: Collection[str] = ()
    comparer: PairComparer = field(default_factory=PairComparer)
    compared: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    alone_calls: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    met: list[CallPair] = field(default_factory=list)
    _asked: int = 0
    _open: list[CallPair] = field(default_factory=list)
    # The objects are kept so that their ids are not reused.
    _handed_on: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)

    # Called by the lockstep.

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        """Compare the arguments of a call that both sides are about to make."""
        met = CallPair(reference.call, candidate.call, self._open[-1] if self._open else None)
        self.met.append(met)
        self._open.append(met)
        if reference.call.key in self.outputs_only:
            return None
        leaf_pairs: LeafPairs = []
        channels = channels_of(reference.call.type, candidate.call.type)
        for name, mine, theirs in match_arguments(reference.arguments, candidate.arguments):
            if self.forcing is not None and is_object(mine) and is_object(theirs):
                met.handed.append(ObjectPair(name, mine, theirs, {state for state, _ in _states(mine)}))
            if mine is theirs or self._was_handed_on(mine, theirs):
                continue
            leaves_of_both = argument_leaves(name, mine, theirs)
            leaf_pairs += self._compared(leaves_of_both, brief=self.forcing is None, channels=channels)
        met.arguments.extend((path, pair) for path, _, _, pair in leaf_pairs)
        if self.sites is not None:
            met.sites = self.sites()
        if self.forcing is None:
            return None
        self._explain(leaf_pairs)
        met.argument_ids = {id(theirs) for _, _, theirs, _ in leaf_pairs}
        return self.forcing.arguments(met, candidate, leaf_pairs)

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        """Compare the outputs of the same call on both sides."""
        met = self._open.pop()
        met.ended = True
        if reference.error is not None or candidate.error is not None:
            met.raised = True
            self._uncompared(reference.call, "raised")
            return None
        channels = channels_of(reference.call.type, candidate.call.type)
        leaf_pairs = self._compared(_matched(reference.value, candidate.value), channels=channels)
        met.outputs.extend((path, pair) for path, _, _, pair in leaf_pairs)
        if any(pair.measurement is not None and not pair.empty for _, pair in met.outputs):
            self.compared += reference.call.path != ""
        else:
            self._uncompared(reference.call, _reason([pair for _, pair in met.outputs]))
        if self.progress is not None:
            self.progress()
        if reference.call.key == "":
            self._keep_caches(met, reference.value, leaf_pairs)
        if self.forcing is None:
            return None
        written = self._written(met)
        met.outputs.extend((path, pair) for path, _, _, pair in written)
        self._explain([*leaf_pairs, *written])
        self.forcing.written(met, written)
        return self.forcing.outputs(met, candidate, leaf_pairs)

    def alone(self, side: int, event: Exit) -> None:
        """Note a call that the other side did not make in the same place."""
        call = event.call
        self.alone_calls[side, call.path, call.type] += 1
        if side == REFERENCE:
            self._uncompared(call, "alone")
        self._note_alone(side, call, event.value)

    def passed(self, call: Call, value: Any) -> None:
        """Note a reference call of a module without a partner in the candidate."""
        if self.selected(call.path):
            # A dropout in eval mode, or a container that returns its last child's output, has nothing of its own.
            returned = [leaf for _, leaf in tensors(value)]
            is_passed_on = bool(returned) and all(map(self.comparer.was_compared, returned))
            self._uncompared(call, "passed_on" if is_passed_on else "no_partner")
            self._note_alone(REFERENCE, call, value)

    def returned(self, call: Call, reference: Any, candidate: Any, *, below: str) -> None:
        """Compare the outputs of another entry than forward, as rows of the root; their paths begin with `below`."""
        met = CallPair(call, call, ended=True)
        met.outputs.extend(
            (join(below, path), pair) for path, _, _, pair in self._compared(_matched(reference, candidate))
        )
        self.met.append(met)

    def _compared(self, matched: list[LeafPair], *, brief: bool = False, channels: Channels | None = None) -> LeafPairs:
        """Return the pairs that have something to tell, with what stands on both sides."""
        found = []
        for path, mine, theirs in matched:
            pair = self.comparer.compare(mine, theirs, brief=brief, channels=channels)
            if pair is not None:
                found.append((path, mine, theirs, pair))
        return found

    def _keep_caches(self, met: CallPair, value: Any, found: LeafPairs) -> None:
        """Note which tensors in the root's output are the model's internal caches, and their `conventions`."""
        read = {mine for mine, _ in self._handed_on}
        caches = [path for path, held in objects(value) if id(held) in read]
        differing = [
            one for one in inside(caches, found) if not self.agrees(one[3], met.call.order, place(met, OUT, one[0]))
        ]
        if differing and not self.is_entry:
            # An error in the state that the model keeps between its calls shows in the output of the method.
            met.kept.update(dict.fromkeys(path for path, *_ in differing))
        elif differing:
            own = {path for path, *_ in differing}
            beside = (pair.statistics().rel_l2 for path, *_, pair in found if path not in own)
            met.kept.update(conventions(differing, noise=max((off for off in beside if off is not None), default=0.0)))

    def _written(self, met: CallPair) -> LeafPairs:
        """Compare the tensors that a call wrote into objects it received: these, too, are its outputs."""
        found: LeafPairs = []
        for handed in met.handed:
            new = {id(leaf) for state, leaf in _states(handed.reference) if state not in handed.held}
            pairs = argument_leaves(handed.name, handed.reference, handed.candidate) if new else []
            found += self._compared([pair for pair in pairs if id(pair[1]) in new])
        met.handed.clear()
        return found

    def _explain(self, found: LeafPairs) -> None:
        """Find how the pairs that differ are related; on an accelerator their numbers are not available yet."""
        if self.forcing is None or not self.forcing.explains:
            return
        for _, mine, theirs, pair in found:
            if not self.comparer.is_explicable(pair, mine, theirs) or self.agrees(pair, LOCAL_DEPTH):
                continue
            off = pair.statistics().rel_l2
            if off is not None and off < _WORTH_ASKING:
                self._asked += 1
                if self._asked > _MOST_ASKED:
                    continue
            self.comparer.explain(pair, mine, theirs, self.floors.of(pair.dtypes, LOCAL_DEPTH))

    def _note_alone(self, side: int, call: Call, value: Any) -> None:
        parent = self._open[-1] if self._open else None
        met = (
            CallPair(call, None, parent, ended=True) if side == REFERENCE else CallPair(None, call, parent, ended=True)
        )
        for path, leaf in leaves(value) or [("", None)]:
            spec = spec_of(leaf) if leaf is not None else None
            if side == REFERENCE:
                met.outputs.append((path, Pair(spec, None, status=Status.REFERENCE_ONLY)))
            else:
                met.outputs.append((path, Pair(None, spec, status=Status.CANDIDATE_ONLY)))
        self.met.append(met)

    def _was_handed_on(self, reference: Any, candidate: Any) -> bool:
        """Return whether both are objects that were passed together before, such as a cache that every layer receives.

        They are compared where they are first passed and wherever they are returned, not at every call between.
        """
        if not is_object(reference) or not is_object(candidate):
            return False
        key = (id(reference), id(candidate))
        if key in self._handed_on:
            return True
        self._handed_on[key] = (reference, candidate)
        return False

    def release(self) -> None:
        """Drop all references to the models' objects and to callbacks; the measurements stay."""
        self._handed_on.clear()
        self._open.clear()
        self.comparer = PairComparer()
        self.progress = self.sites = None

    # The results, when the run is over.

    def rows(self) -> list[Row]:
        """Return the rows in the reference's execution order."""
        made = [row for met in self.met for row in self.rows_of(met)]
        return sorted(made, key=lambda row: row.order)

    def final_rows(self) -> list[Row]:
        """Return only the rows of the root, which are all that the judgement of the outcome reads."""
        return [row for met in self.met if met.call.key == "" for row in self.rows_of(met)]

    def differing(self) -> set[str]:
        """Return the paths of the modules with an output that does not agree; as `rows` says, at half its cost."""
        return {
            met.call.key
            for met in self.met
            if met.call.key is not None
            and not all(
                name in met.kept or self.agrees(pair, met.call.order, place(met, OUT, name))
                for name, pair in met.outputs
            )
        }

    def rows_of(self, met: CallPair) -> list[Row]:
        """Return the rows of one call; they are available as soon as the call has ended."""
        return [self._row(met, path, pair) for path, pair in met.outputs]

    def arguments(self) -> list[Argument]:
        """Return the arguments that differ by more than rounding, in the reference's execution order."""
        made = [
            self._argument(met, name, pair)
            for met in self.met
            for name, pair in met.arguments
            if not self.agrees(pair, met.call.entry, place(met, IN, name))
        ]
        return sorted(made, key=lambda argument: argument.order)

    def _argument(self, met: CallPair, name: str, pair: Pair) -> Argument:
        call, found = met.call, pair.statistics()
        return Argument(
            module=call.key or "",
            call=call.index,
            argument=name,
            caller=call.caller,
            status=found.status,
            order=call.entry,
            sample=self.sample,
            reference=pair.reference,
            candidate=pair.candidate,
            relation=_with_error(pair.relation, found),
            peir=found.peir,
            max=found.max,
        )

    def _row(self, met: CallPair, output: str, pair: Pair) -> Row:
        call, found = met.call, pair.statistics()
        incoming = (p.statistics().peir for _, p in met.arguments)
        kept = met.kept.get(output)
        relation = kept if kept is not None else _with_error(pair.relation, found)
        where = place(met, OUT, output)
        return Row(
            module=call.key if call.key is not None else call.path,
            call=call.index,
            output=output,
            type=call.type,
            order=call.order,
            status=found.status,
            verdict=Verdict.ABSORBED if output in met.kept else self.verdict(pair, call.order, where),
            sample=self.sample,
            reference=pair.reference,
            candidate=pair.candidate,
            relation=relation,
            mean=found.mean,
            min=found.min,
            max=found.max,
            stddev=found.stddev,
            peir=found.peir,
            sqnr_db=found.sqnr_db,
            cosine=found.cosine,
            rel_l2=found.rel_l2,
            mismatch=found.mismatch,
            non_finite=found.non_finite,
            non_finite_same=pair.has_same_non_finite(),
            peir_related=pair.peir_related() if kept is None else kept.error,
            peir_in=max((peir for peir in incoming if peir is not None), default=None),
            floor=self.floors.of(pair.dtypes, call.order, where) if pair.measurement is not None else None,
            elements=found.elements,
        )

    def verdict(self, pair: Pair, depth: int, where: Place | None = None) -> Verdict | None:
        """Return the verdict that a pair has by itself, `depth` calls after the inputs; None where it just differs.

        The calls around the pair show where such a difference comes from; see `qtrace.diagnosis.trial`.
        """
        found = pair.statistics()
        if found.status in (Status.REFERENCE_ONLY, Status.CANDIDATE_ONLY):
            return Verdict.UNMATCHED
        if found.status in (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH):
            return Verdict.STRUCTURE
        if self.agrees(pair, depth, where):
            return Verdict.EQUAL if pair.layout is None else Verdict.LAYOUT
        return Verdict.NON_FINITE if found.status is Status.NON_FINITE else None

    def agrees(self, pair: Pair, depth: int, where: Place | None = None) -> bool:
        """Return whether a pair is the same up to rounding, a layout or a mask's fill; NaN never agrees."""
        found = pair.statistics()
        if pair.measurement is None:
            return False
        if (
            self.floors.tolerance is None
            and found.mismatch is not None
            and not any(dtype.is_floating_point for dtype in pair.dtypes)
        ):
            # Token ids, indices, masks: one unequal element is an error, however large the others are.
            return found.mismatch == 0
        floor = self.floors.of(pair.dtypes, depth, where)
        if pair.relation is not None and pair.relation.kind == "mask":
            return pair.relation.error is not None and pair.relation.error <= floor
        if found.status is Status.NON_FINITE and not pair.has_same_non_finite():
            return False
        if found.status is Status.CONSTANT_REFERENCE:
            # There is no interval to measure against, as with a loss: the value itself takes its place.
            return found.rel_l2 is not None and found.rel_l2 <= floor
        return pair.empty or (found.peir is not None and found.peir <= floor)

    def _uncompared(self, call: Call, reason: str) -> None:
        if call.path != "":
            self.reasons[reason] += 1


def _states(value: Any) -> list[tuple[tuple[int, int], torch.Tensor]]:
    """Return the tensors that an object holds, each with a key that changes when it is replaced or written."""
    return [((id(leaf), 0 if leaf.is_inference() else leaf._version), leaf) for _, leaf in tensors(value)]


def _matched(reference: Any, candidate: Any) -> list[LeafPair]:
    if isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor):
        return [("", reference, candidate)]
    return match_leaves(leaves(reference), leaves(candidate))


def _with_error(relation: Relation | None, found: Statistics) -> Relation | None:
    """Return the relation with the error that remains under it; a layout is undone before the pair is measured."""
    if relation is not None and relation.kind == "layout":
        return replace(relation, error=found.peir)
    return relation


def _reason(pairs: list[Pair]) -> str:
    if not pairs:
        return "no_tensor"
    statuses = [pair.status for pair in pairs if pair.status is not None]
    return statuses[0].value if statuses else "empty"
