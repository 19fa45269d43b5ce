"""Checks of each model against itself: the same values twice, the same without hooks, the same mode."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from qtrace.diagnosis.static_differences import minds_mode, pattern_of
from qtrace.diagnosis.suspects import role
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import End
from qtrace.engine.forcing import IN, Forcing
from qtrace.engine.live_side import LiveSide
from qtrace.engine.lockstep import Lockstep
from qtrace.engine.lockstep_pass import Fingerprint, copied
from qtrace.engine.model import Model, buffers_kept, devices_of
from qtrace.engine.plan import Plan
from qtrace.engine.torch_state import RandomState
from qtrace.numerics import NoValues, measure
from qtrace.report.records import Finding
from qtrace.tree import tensors

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Ran:
    """The output of one run, and whether the run drew random numbers; `error` is set where the model raised."""

    value: Any = None
    drew_random: bool = False
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class SingleModel:
    """Runs one model, each time on a copy of the same inputs and from the random state `random` of `devices`.

    A run leaves no change in the model's buffers and no hook on it. The random state stays where the run moved it.
    """

    model: Model
    sample: Any
    call: str
    random: RandomState
    devices: tuple[str, ...] = ("cpu",)

    def bare(self) -> Ran:
        """Run without hooks."""
        function = self._function()
        self.random.restore()
        with buffers_kept([self.model]):
            try:
                value = function()
            except Exception as error:
                return Ran(error=error)
        return Ran(value, not self.random.equals(RandomState(self.devices)))

    def hooked(self) -> Ran:
        """Run with the hooks of a pass, pausing at each call, without the other side."""
        side = self._side(self.random)
        with buffers_kept([self.model]):
            try:
                event = side.start(self._function())
                while not isinstance(event, End):
                    event = side.step()
            finally:
                side.close()
        if isinstance(event.error, Exception):
            return Ran(error=event.error)
        if event.error is not None:
            raise event.error
        return Ran(event.value)

    def varying(self) -> dict[str, float | None]:
        """Return the innermost modules whose output changes with the random numbers, with the PEIR of the change.

        The model runs against itself, on two streams of random numbers. The second run receives the first run's
        tensors at every boundary, so that each module shows by itself whether it varies. The PEIR is None where it
        does not exist, as between NaN and a number.
        """
        everything = self.model.modules.keys()
        comparison = Comparison(forcing=Forcing(entries=everything, exits=everything))
        lockstep = Lockstep(self._side(self.random), self._side(self._other_random()), comparison, reference_first=True)
        with buffers_kept([self.model]):
            lockstep.run(self._function(), self._function())
        for end in lockstep.ends:
            if end.error is not None and not isinstance(end.error, Exception):
                raise end.error
        found = _innermost(comparison)
        comparison.release()
        return found

    def _side(self, stream: RandomState) -> LiveSide:
        keys = {path: path for path in self.model.modules}
        model = self.model
        return LiveSide(model.modules, keys, devices=self.devices, random=stream, rewriting=model.rewriting)

    def _function(self) -> Callable[[], Any]:
        return self.model.entry(self.call, copied(self.sample))

    def _other_random(self) -> RandomState:
        """Return the state at which another stream begins, the same stream every time."""
        self.random.restore()
        seed = int(torch.randint(1 << 32, ()))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return RandomState(self.devices)


def _innermost(comparison: Comparison) -> dict[str, float | None]:
    """Return the modules that differ on clean arguments, without the containers of another such module."""
    found: dict[str, float | None] = {}
    around: set[int] = set()
    # A call comes before the calls inside it.
    for met in reversed(comparison.met):
        if id(met) in around:
            around.add(id(met.parent))
            continue
        clean = all(IN + name in met.forced or comparison.agrees(p, met.call.entry) for name, p in met.arguments)
        changed = [pair for _, pair in met.outputs if not comparison.agrees(pair, met.call.order)]
        if clean and changed:
            around.add(id(met.parent))
            sizes = [pair.statistics().peir for pair in changed]
            found[met.call.path] = max((size for size in sizes if size is not None), default=None)
    return dict(reversed(found.items()))


@dataclass(frozen=True, slots=True)
class FirstPass:
    """The facts about the pass that found a divergence, as a self-check needs them.

    `random` is the state of the random generators before the pass. `fingerprints` are those of both models' outputs
    (None for a model that did not end). `drew_random` says whether a generator moved. `again` is the fingerprint of
    the reference's output in another run that had hardly any hooks, if there was one.
    """

    random: RandomState
    fingerprints: tuple[Fingerprint | None, Fingerprint | None]
    drew_random: bool
    again: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The results of the self-checks, by reference path.

    `varies` holds the modules that compute something else each time on the candidate only. `excused` holds those that
    do so on the reference only, and so explain a difference without a fault. `notes` are further evidence for other
    findings at a module, such as a mode that differs.
    """

    warnings: tuple[str, ...] = ()
    varies: Mapping[str, str] = field(default_factory=dict)
    excused: frozenset[str] = frozenset()
    notes: Mapping[str, str] = field(default_factory=dict)

    def applied(self, findings: Sequence[Finding]) -> list[Finding]:
        """Return the findings after the self-checks: without the excused, some with more evidence, some new.

        New findings come after those that a graft has confirmed. The same finding of repeated layers is one, with
        `members`.
        """
        kept = [self._with_evidence(finding) for finding in findings if finding.module not in self.excused]
        named = {path for finding in kept for path in (finding.module, *finding.members)}
        confirmed = [finding for finding in kept if finding.confirmed]
        others = [finding for finding in kept if not finding.confirmed]
        made = self._new_findings(path for path in self.varies if path not in named)
        found = (*confirmed, *made, *others) if made else kept
        return [replace(finding, rank=rank) for rank, finding in enumerate(found, 1)]

    def _with_evidence(self, finding: Finding) -> Finding:
        said = [said[finding.module] for said in (self.varies, self.notes) if finding.module in said]
        return replace(finding, evidence=(*finding.evidence, *said))

    def _new_findings(self, paths: Iterable[str]) -> list[Finding]:
        groups: dict[tuple[str, str], list[str]] = {}
        for path in paths:
            groups.setdefault((role(path), self.varies[path].split(": ")[-1]), []).append(path)
        return [
            Finding(
                rank=0,
                module=members[0],
                call=0,
                kind="introduces",
                summary=f"computes something else each time in the candidate alone: {cause}",
                members=tuple(members) if len(members) > 1 else (),
                count=len(members),
                evidence=(self.varies[members[0]],),
            )
            for (_, cause), members in groups.items()
        ]


def self_check(models: tuple[Model, Model], plan: Plan, sample: Any, call: str, first: FirstPass) -> SelfCheck:
    """Check both models against themselves; costs one forward of the reference where nothing is suspicious.

    The reference runs once without hooks. So does the candidate if it has modules in training mode, or if random
    numbers were drawn. Only a model that then differs, or draws, runs again. No model's mode is changed, and the
    caller's random state is as before.

    Args:
        models: the reference and the candidate.
        plan: the alignment of the modules, nothing left out.
        sample: the inputs of the pass that found a divergence.
        call: the method that was called, such as "forward".
        first: the facts about that pass.
    """
    devices = devices_of(models)
    before = RandomState(devices)
    # The reference returned the same values again and drew nothing: it needs no further check.
    same_again = first.again is not None and first.again == first.fingerprints[0] and not first.drew_random
    suspicious = (not same_again, bool(models[1].in_training) or first.drew_random)
    warnings: list[str] = []
    varying: list[dict[str, str]] = [{}, {}]
    try:
        with torch.no_grad():
            for side, model in enumerate(models):
                seen = first.fingerprints[side]
                if seen is None or not suspicious[side]:
                    continue
                solo = SingleModel(model, sample, call, first.random, devices)
                warning, varies = _against_itself(solo, seen)
                warnings += [warning] if warning is not None else []
                if varies:
                    varying[side] = {path: _cause(model, path, size) for path, size in solo.varying().items()}
    finally:
        before.restore()
    warnings += [_varies_warning(model, found) for model, found in zip(models, varying, strict=True) if found]
    mine, theirs = varying[0], _by_reference_path(varying[1], plan)
    notes, mode_warnings = _modes(models, plan, told=mine.keys() | theirs.keys())
    both = {path for path in theirs if any(_is_within(other, path) for other in mine)}
    return SelfCheck(
        tuple(warnings + mode_warnings),
        {path: said for path, said in theirs.items() if path not in both},
        frozenset(mine) - theirs.keys(),
        notes,
    )


def _against_itself(solo: SingleModel, seen: Fingerprint) -> tuple[str | None, bool]:
    """Return the warning if a model run by itself returns another output than in the pass, and if it varies by run."""
    name = solo.model.name
    alone = solo.bare()
    if alone.error is not None:
        return f"the {name} raises {type(alone.error).__name__} when it is run again without hooks", False
    if Fingerprint(alone.value) == seen:
        return None, alone.drew_random
    again = solo.bare()
    if Fingerprint(again.value) != Fingerprint(alone.value):
        how = f"does not compute the same twice{_distance(alone.value, again.value)}, from the same random state"
        return f"the {name} {how}: an operation in no fixed order, or a random generator or state of its own", True
    hooked = solo.hooked()
    if Fingerprint(hooked.value) == Fingerprint(alone.value):
        why = "it keeps state between calls, or shares tensors or modules with the other model"
        return f"the {name} computes something else alone than beside the other model: {why}", alone.drew_random
    why = ": torch's transformer layers leave their fast path" if solo.model.may_leave_fast_path() else ""
    how = f"computes something else while hooks are there{_distance(alone.value, hooked.value)}"
    return f"the {name} {how}{why}", alone.drew_random


def _distance(first: Any, second: Any) -> str:
    """Return the largest PEIR between two returned values, as " (PEIR 7.2e-07)"; "" where there is none."""
    theirs = dict(tensors(second))
    sizes = []
    for path, mine in tensors(first):
        if path in theirs and theirs[path].shape == mine.shape:
            try:
                sizes.append(measure(mine, theirs[path], metrics="range").result().peir)
            except NoValues:
                continue
    known = [size for size in sizes if size is not None]
    return f" (PEIR {max(known):.1e})" if known else ""


def _cause(model: Model, path: str, size: float | None) -> str:
    shown = f" (PEIR {size:.1e})" if size is not None else ""
    return f"two runs of the {model.name} on the same inputs differ here{shown}: {_culprit(model.modules[path])}"


def _culprit(module: torch.nn.Module) -> str:
    kind = type(module).__name__
    if module.training and minds_mode(module):
        # Not every module that drops has one rate under this name.
        rate = getattr(module, "p", None)
        return f"{kind} in training mode" + (f" with p {rate}" if isinstance(rate, float) else "")
    return f"{kind} draws random numbers, or keeps state between calls"


def _varies_warning(model: Model, found: Mapping[str, str]) -> str:
    named = _named([(path, said.split(": ")[-1]) for path, said in found.items()])
    training = "; call .eval() on it" if any(model.modules[path].training for path in found) else ""
    return f"the {model.name} computes something else each time ({named}){training}"


def _modes(models: tuple[Model, Model], plan: Plan, told: Container[str]) -> tuple[dict[str, str], list[str]]:
    """Return the modules that depend on their mode and train on one side only, and warnings; `told` ones are left out.

    `told` are the modules that are reported already.
    """
    notes: dict[str, str] = {}
    alone: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for path, key in plan.candidate_keys.items():
        pair = (models[0].modules[key], models[1].modules[path])
        # A wrapper's own mode has no effect: the module that depends on it is inside.
        if key in told or pair[0].training == pair[1].training or not all(map(minds_mode, pair)):
            continue
        side = int(pair[1].training)
        kind = type(pair[side]).__name__
        alone[side].append((key, kind))
        notes[key] = f"{kind} is in training mode in the {models[side].name} alone"
    warnings = [
        f"in training mode in the {model.name} alone: {_named(found)}; call .eval() on it"
        for model, found in zip(models, alone, strict=True)
        if found
    ]
    return notes, warnings


def _named(found: Sequence[tuple[str, str]]) -> str:
    """Return "layers.*.drop (Dropout), norm (BatchNorm1d) …" for (path, what) in as few words as the paths allow."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, what in found:
        groups.setdefault((role(path), what), []).append(path)
    some = [f"{pattern_of(paths) or '<root>'} ({what})" for (_, what), paths in groups.items()]
    return ", ".join(some[:_MOST_NAMED]) + (" …" if len(some) > _MOST_NAMED else "")


def _by_reference_path(varying: Mapping[str, str], plan: Plan) -> dict[str, str]:
    """Return the candidate's varying modules by reference path: of the partner, or else of the nearest around it."""
    found: dict[str, str] = {}
    for path, said in varying.items():
        while path not in plan.candidate_keys and path:
            path = path.rpartition(".")[0]
        found.setdefault(plan.candidate_keys.get(path, ""), said)
    return found


def _is_within(path: str, around: str) -> bool:
    return path == around or not around or path.startswith(f"{around}.")
