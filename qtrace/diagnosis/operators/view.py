"""Builds the operator view of one call: its arguments and outputs that differ, its operators, and where sides part."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qtrace.diagnosis.operators.code import code_place
from qtrace.diagnosis.operators.graph import Kind, Recorded, Recording
from qtrace.diagnosis.operators.pairing import Match, cut_of
from qtrace.diagnosis.operators.recorder import Recorder
from qtrace.diagnosis.operators.split import Decision, Parting, decide
from qtrace.diagnosis.operators.target import Kept, Target, keep, target
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import LeafPair, Site, argument_leaves, match_arguments, match_leaves
from qtrace.engine.lockstep import CANDIDATE, REFERENCE
from qtrace.engine.lockstep_pass import Options, Pass
from qtrace.engine.model import Model
from qtrace.engine.pair import PairComparer
from qtrace.engine.plan import Plan, better_plan, make_plan
from qtrace.engine.samples import as_samples
from qtrace.errors import QtraceError, UsageError
from qtrace.numerics.tolerance import Floors
from qtrace.report.records.operators import Agreement, Differing, Operator, OperatorView, Partner, Split

# If the values themselves refute a pair, the split is searched for again without the two, so many times.
_MOST_ROUNDS = 3
# A call of more operators is not examined: that would take longer than all the passes before.
MOST_OPERATORS = 1000


def plan_by_calls(
    plan: Plan, models: tuple[Model, Model], sample: Any, call: str, renames: Mapping[str, str]
) -> Plan | None:
    """Return the plan made with the calls of both models, which run once; None if it finds no more partners.

    A comparison of whole models aligns them in the same way: a module that keeps its name and is no longer called then
    is no module's partner.
    """
    done = Pass(models, plan, sample, Options(call=call, renames=dict(renames)))
    done.execute()
    for end in done.ends:
        if isinstance(end.error, KeyboardInterrupt):
            raise end.error
    if done.raised():
        return None
    return better_plan(plan, models, (done.calls(REFERENCE), done.calls(CANDIDATE)), renames=renames)


def outer_arguments(reference: Recorder, candidate: Recorder) -> Iterator[LeafPair]:
    """Yield the pairs of argument values, under the reference's names."""
    for name, mine, theirs in match_arguments(reference.arguments, candidate.arguments):
        yield from argument_leaves(name, mine, theirs)


def outer_outputs(reference: Recorder, candidate: Recorder) -> list[LeafPair]:
    """Return the pairs of output values, by output path."""
    return match_leaves(list(reference.returned.items()), list(candidate.returned.items()))


def outer_differences(pairs: Iterable[LeafPair], floors: Floors, depth: int) -> Iterator[Differing]:
    """Yield the pairs that differ by more than rounding, `depth` calls after the inputs."""
    comparer, judge = PairComparer(), Comparison(floors=floors)
    for name, mine, theirs in pairs:
        pair = comparer.compare(mine, theirs)
        if pair is None or judge.agrees(pair, depth):
            continue
        comparer.explain(pair, mine, theirs, floors.of(pair.dtypes, depth))
        found = pair.statistics()
        yield Differing(name, found.status, pair.reference, pair.candidate, pair.relation, found.peir)


def operators(
    recording: Recording,
    other: Recording,
    matches: Mapping[int, Match],
    modules: Mapping[str, torch.nn.Module],
    shown: int | None,
) -> tuple[Operator, ...]:
    """Return a side's operators; the operator `shown` comes with the lines of code around it."""
    paths = {id(module): path for path, module in modules.items()}
    return tuple(
        _operator(recorded, recording, other, matches, paths, around=recorded.index == shown)
        for recorded in recording.operators
    )


def _operator(
    recorded: Recorded,
    recording: Recording,
    other: Recording,
    matches: Mapping[int, Match],
    paths: Mapping[int, str],
    *,
    around: bool,
) -> Operator:
    taken = [recording.values[index] for index in recorded.inputs]
    origin = recorded.origin
    return Operator(
        index=recorded.index,
        name=recorded.name,
        outputs=recorded.specs,
        inputs=tuple(dict.fromkeys(value.operator for value in taken if value.kind is Kind.OPERATOR)),
        given=tuple(value.name or value.kind.value for value in taken if value.kind is not Kind.OPERATOR),
        settings=recorded.settings,
        module=paths.get(id(origin.module), ""),
        place=code_place(origin.site, around=around),
        own=code_place(origin.own, around=around and origin.own != origin.site),
        partner=next((_partner(matches[v], other) for v in recorded.outputs if v in matches), None),
    )


def _partner(match: Match, other: Recording) -> Partner:
    made = [other.values[index].operator for index in match.others]
    return Partner(tuple(dict.fromkeys(index for index in made if index >= 0)), match.relation)


Recordings = tuple[Recording, Recording]


def compare_operators(
    reference: torch.nn.Module,
    candidate: torch.nn.Module,
    inputs: Any,
    module: str,
    *,
    call_index: int = 0,
    call: str = "forward",
    rename: Mapping[str, str] | None = None,
    floors: Floors | None = None,
) -> OperatorView:
    """Return the operators that one call of a module runs on both sides, and where the two sides part.

    Args:
        reference: the model that is right by definition.
        candidate: the model that should compute the same.
        inputs: as `qtrace.trace` takes them; of several samples the first.
        module: the reference's path of the module; "" or "<root>" is the whole model.
        call_index: which of its calls, from 0.
        call: the method to call instead of the model itself.
        rename: as `qtrace.trace` takes it.
        floors: the PEIR up to which tensors agree; by default the rounding of their dtypes.

    Each model runs by itself, and the module on the arguments that it really receives there. If its outputs differ,
    a second run, up to that call, compares the values around the split. No hook is left; buffers and random
    generators are as before.

    Raises:
        UsageError: there is no such module, it has no partner in the candidate, or it is not called (so often).
        ForwardError: a model raised.
    """
    models = Model("reference", reference), Model("candidate", candidate)
    sample, plan, limits = as_samples(inputs)[0], make_plan(*models, renames=rename), floors or Floors()
    try:
        found = target(models, plan, sample, module, call)
        path, recorders, calls = found.first(call_index)
    except UsageError:
        # Only here is a further run worth its time: the partner by name may not be the module that is called.
        better = plan_by_calls(plan, models, sample, call, rename or {})
        if better is None:
            raise
        found = target(models, better, sample, module, call)
        path, recorders, calls = found.first(call_index)
    # The depth of the call in the model is not counted here: the greatest possible depth stands for it.
    depth = len(found.plan.reference_keys)
    arguments = tuple(outer_differences(outer_arguments(*recorders), limits, depth))
    pairs = outer_outputs(*recorders)
    outputs = tuple(outer_differences(pairs, limits, depth))
    recordings = recordings_of(recorders)
    values = returned(recorders, recordings, pairs, {one.name for one in outputs})
    decision = decide(recordings, values, limits, depth)
    split = None
    if outputs:
        around = _Around(found, path, call_index, recordings, values, limits, depth)
        decision, split = around.split(decision, [one.name for one in arguments])
    shown = (split.reference, split.candidate) if split is not None else (None, None)
    mine, theirs = (
        operators(recordings[side], recordings[1 - side], matches, models[side].modules, shown[side])
        for side, matches in ((REFERENCE, decision.pairing.reference), (CANDIDATE, decision.pairing.candidate))
    )
    return OperatorView(
        module=found.path,
        candidate=path,
        call=call_index,
        calls=calls,
        agrees=not outputs,
        error=max((one.peir for one in outputs if one.peir is not None), default=None),
        arguments=arguments,
        outputs=outputs,
        split=split,
        reference_operators=mine,
        candidate_operators=theirs,
    )


def floors_of(tolerance: float | str, noise_floor: float | str) -> Floors:
    """Return the floors for `tolerance` and `noise_floor` as `qtrace.trace` takes them; a word leaves the default.

    The measured noise of whole modules is no measure for the operators inside them.
    """
    return Floors(
        None if isinstance(tolerance, str) else float(tolerance),
        0.0 if isinstance(noise_floor, str) else float(noise_floor),
    )


def recordings_of(recorders: tuple[Recorder, Recorder]) -> Recordings:
    """Return the recordings of both sides."""
    mine, theirs = (recorder.recording for recorder in recorders)
    assert mine is not None
    assert theirs is not None
    return mine, theirs


def returned(
    recorders: tuple[Recorder, Recorder], recordings: Recordings, pairs: Iterable[LeafPair], differing: Container[str]
) -> tuple[list[int], list[int]]:
    """Return, for each side, the returned values that differ."""
    found: tuple[list[int], list[int]] = ([], [])
    for path, *both in pairs:
        for side, leaf in enumerate(both):
            own = (name for name, one in recorders[side].returned.items() if one is leaf and path in differing)
            found[side].extend(recordings[side].outputs[name] for name in own if name in recordings[side].outputs)
    return found


@dataclass(frozen=True, slots=True)
class _Around:
    """Compares the values around a split, and drops the pairs that they refute."""

    target: Target
    path: str
    index: int
    recordings: Recordings
    returned: tuple[list[int], list[int]]
    floors: Floors
    depth: int

    def split(self, decision: Decision, differing: Collection[str]) -> tuple[Decision, Split]:
        """Return the decision that the values confirm, and the split for the report; `differing` are arguments."""
        refuted: tuple[set[int], set[int]] = (set(), set())
        while True:
            kept = self._kept(decision)
            agreed, holds = self._agreement(decision, kept)
            if holds or decision.agreed is None or len(refuted[0]) >= _MOST_ROUNDS:
                break
            for values, value in zip(refuted, decision.agreed, strict=True):
                values.add(value)
            decision = decide(self.recordings, self.returned, self.floors, self.depth, refuted)
        first, second = decision.reference.first, decision.candidate.first
        pair = None
        if kept is not None and first is not None and second is not None:
            pair = kept.compared((first, second), self._cut(decision))
        return decision, Split(
            reference=self._operator(REFERENCE, first),
            candidate=self._operator(CANDIDATE, second),
            left_out=decision.left_out,
            agreed=agreed,
            relation=None if pair is None else pair.relation,
            error=None if pair is None else pair.statistics().peir,
            arguments=tuple(name for name in differing if name in coming_in(self.recordings, decision)),
        )

    def _operator(self, side: int, value: int | None) -> int | None:
        return None if value is None else self.recordings[side].values[value].operator

    def _kept(self, decision: Decision) -> Kept | None:
        agreed = decision.agreed or (None, None)
        wanted = [
            {value for value in values if value is not None}
            for values in ((decision.reference.first, agreed[0]), (decision.candidate.first, agreed[1]))
        ]
        if not all(wanted):
            return None
        return keep(
            self.target, self.path, self.index, self.recordings, (wanted[0], wanted[1]), self.floors, self.depth
        )

    def _agreement(self, decision: Decision, kept: Kept | None) -> tuple[Agreement | None, bool]:
        """Return the last pair before the split with the error between them, and whether the values confirm it."""
        if decision.agreed is None:
            return None, True
        mine, theirs = decision.agreed
        made = [self.recordings[side].values[value].operator for side, value in enumerate(decision.agreed)]
        relation = decision.relation()
        pair = None if kept is None else kept.compared((mine, theirs), self._cut(decision))
        if kept is None or pair is None:
            return Agreement(made[0], made[1], relation), True
        error = pair.peir_related() if pair.convention is not None else pair.statistics().peir
        return Agreement(made[0], made[1], relation or pair.convention, error), kept.agree(pair)

    def _cut(self, decision: Decision) -> tuple[int, int] | None:
        """Return the axis and the index if one value of the last pair is a slice of the other."""
        if decision.agreed is None:
            return None
        mine, theirs = (self.recordings[side].values[value].sketch for side, value in enumerate(decision.agreed))
        return None if mine is None or theirs is None else cut_of(mine, theirs)


def coming_in(recordings: Recordings, decision: Decision) -> set[str]:
    """Return the names of the arguments that enter where the two sides part, without those that agree."""
    names: set[str] = set()
    partings = ((decision.reference, decision.pairing.reference), (decision.candidate, decision.pairing.candidate))
    for recording, (parted, matches) in zip(recordings, partings, strict=True):
        todo = [] if parted.first is None else list(recording.inputs_of(parted.first))
        seen: set[int] = set()
        while todo:
            index = todo.pop()
            if index in seen or index in matches:
                continue
            seen.add(index)
            if recording.values[index].kind is Kind.ARGUMENT:
                names.add(recording.values[index].name)
            todo += recording.inputs_of(index)
    return names


Sites = tuple[Site | None, Site | None]


def pinpoint(found: Target, index: int, floors: Floors) -> Sites | None:
    """Return, for each side, the line of the module's own code at which it parts from the other.

    The line is None for a side that leaves operators out. Each side runs once, up to the end of that call. The result
    is None if the call cannot be run again, if its outputs then agree, if arguments that differ enter at the split, or
    if the call is too long.
    """
    try:
        _, recorders, _ = found.first(index, most=MOST_OPERATORS)
    except QtraceError:
        return None
    if any(recorder.is_cut_short for recorder in recorders):
        return None
    depth = len(found.plan.reference_keys)
    pairs = outer_outputs(*recorders)
    differing = {one.name for one in outer_differences(pairs, floors, depth)}
    recordings = recordings_of(recorders)
    decision = decide(recordings, returned(recorders, recordings, pairs, differing), floors, depth)
    if not differing or coming_in(recordings, decision):
        return None
    first, second = (
        _first_operator(recording, parted)
        for recording, parted in zip(recordings, (decision.reference, decision.candidate), strict=True)
    )
    both_held = decision.reference.left_out and decision.candidate.left_out
    if both_held and (first is None or second is None or first.name != second.name):
        # Each side returns a value that the other holds as well, by operators unrelated to the other's.
        return None
    mine, theirs = (
        None if one is None or left_out else one.origin.own
        for one, left_out in zip((first, second), decision.left_out, strict=True)
    )
    return mine, theirs


def _first_operator(recording: Recording, parted: Parting) -> Recorded | None:
    return None if parted.first is None else recording.operators[recording.values[parted.first].operator]
