"""The operator view of one call: what differs outside, what was computed inside, and where the two part."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qtrace.diagnosis.operators import outside
from qtrace.diagnosis.operators.aligned import plan_by_calls
from qtrace.diagnosis.operators.decision import Decision, decide
from qtrace.diagnosis.operators.graph import Kind, Recording
from qtrace.diagnosis.operators.pairing import cut_of
from qtrace.diagnosis.operators.recorder import Recorder
from qtrace.diagnosis.operators.target import Target, target
from qtrace.diagnosis.operators.told import operators
from qtrace.diagnosis.operators.verified import Kept, keep
from qtrace.engine.driver import CANDIDATE, REFERENCE
from qtrace.engine.leaves import LeafPair
from qtrace.engine.model import Model
from qtrace.engine.plan import make_plan
from qtrace.engine.samples import as_samples
from qtrace.errors import UsageError
from qtrace.numerics.tolerance import Floors
from qtrace.report.records.operators import Agreement, OperatorView, Split

Recordings = tuple[Recording, Recording]
# Where a look at the values refutes a pair, the split is looked for again without the two, so many times.
_MOST_ROUNDS = 3


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
    """Return what one call of a module computes on both sides, operator by operator, and where the two part.

    Args:
        reference: the model that is right by definition.
        candidate: the model that should compute the same.
        inputs: as `qtrace.trace` takes them; of several samples the first.
        module: the reference's path of the module; "" or "<root>" is the whole model.
        call_index: which of its calls, from 0.
        call: the method to call instead of the model itself.
        rename: as `qtrace.trace` takes it.
        floors: the PEIR up to which tensors agree; by default the rounding of their dtypes.

    Each model runs by itself, and the module on the arguments that it really receives there. Where its outputs
    differ, a second run, up to that call, looks at the values around the split. No hook is left; buffers and random
    generators are as before.

    Raises:
        UsageError: there is no such module, none of the candidate answers to it, or it is not called (so often).
        ForwardError: a model raised.
    """
    models = Model("reference", reference), Model("candidate", candidate)
    sample, plan, limits = as_samples(inputs)[0], make_plan(*models, renames=rename), floors or Floors()
    try:
        found = target(models, plan, sample, module, call)
        path, recorders, calls = found.first(call_index)
    except UsageError:
        # Only here is it worth a run more: what answers by its name may not be what is called.
        better = plan_by_calls(plan, models, sample, call, rename or {})
        if better is None:
            raise
        found = target(models, better, sample, module, call)
        path, recorders, calls = found.first(call_index)
    # How deep in the model the call is, nobody has counted: as deep as it goes.
    depth = len(found.plan.reference_keys)
    arguments = tuple(outside.differing(outside.arguments(*recorders), limits, depth))
    pairs = outside.outputs(*recorders)
    outputs = tuple(outside.differing(pairs, limits, depth))
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
    """Return the floors for what `qtrace.trace` takes as `tolerance` and `noise_floor`; a word leaves the default.

    The measured noise of whole modules says nothing of the operators inside them.
    """
    return Floors(
        None if isinstance(tolerance, str) else float(tolerance),
        0.0 if isinstance(noise_floor, str) else float(noise_floor),
    )


def recordings_of(recorders: tuple[Recorder, Recorder]) -> Recordings:
    """Return what was recorded on both sides."""
    mine, theirs = (recorder.recording for recorder in recorders)
    assert mine is not None
    assert theirs is not None
    return mine, theirs


def returned(
    recorders: tuple[Recorder, Recorder], recordings: Recordings, pairs: Iterable[LeafPair], differing: Container[str]
) -> tuple[list[int], list[int]]:
    """Return, for each side, the values that were returned and differ."""
    found: tuple[list[int], list[int]] = ([], [])
    for path, *both in pairs:
        for side, leaf in enumerate(both):
            own = (name for name, one in recorders[side].returned.items() if one is leaf and path in differing)
            found[side].extend(recordings[side].outputs[name] for name in own if name in recordings[side].outputs)
    return found


@dataclass(frozen=True, slots=True)
class _Around:
    """Looks at the values around a split, and takes back what they refute."""

    target: Target
    path: str
    index: int
    recordings: Recordings
    returned: tuple[list[int], list[int]]
    floors: Floors
    depth: int

    def split(self, decision: Decision, differing: Collection[str]) -> tuple[Decision, Split]:
        """Return the decision that the values bear out, and the split as it is told; `differing` are arguments."""
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
        """Return the last pair before the split with the error between them, and whether the values bear it out."""
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
        """Return the axis and the index of the slice that one value of the last pair is of the other."""
        if decision.agreed is None:
            return None
        mine, theirs = (self.recordings[side].values[value].sketch for side, value in enumerate(decision.agreed))
        return None if mine is None or theirs is None else cut_of(mine, theirs)


def coming_in(recordings: Recordings, decision: Decision) -> set[str]:
    """Return the names of the arguments that come in where the two part, not counting those that agree."""
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
