"""Runs the further passes of an investigation: the same models, the same sample, other boundaries forced."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qtrace.diagnosis.operators.target import Target
from qtrace.diagnosis.operators.view import Sites, pinpoint
from qtrace.diagnosis.suspects import Suspect
from qtrace.diagnosis.tensor_differences import held_tensor
from qtrace.diagnosis.trial import CallRecord, Trial, Value
from qtrace.engine.comparison import LOCAL_DEPTH, Comparison
from qtrace.engine.events import Site
from qtrace.engine.forcing import IN, OUT, Forcing
from qtrace.engine.hooks import CallProbe, run_with_probe
from qtrace.engine.live_side import Listener
from qtrace.engine.lockstep import CANDIDATE, REFERENCE, Meeting
from qtrace.engine.lockstep_pass import Fingerprint, Options, Pass, copied
from qtrace.engine.model import Model, buffers_kept
from qtrace.engine.pair import CallPair, Pair, place
from qtrace.engine.plan import Plan
from qtrace.engine.samples import Sample
from qtrace.numerics.relations import DELIBERATE, excuses
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import ONE_SIDED, RELIEVED, Relation

# Two trials never give the same number to two pairs, so that a part of one can be spliced into another.
_NUMBERS = itertools.count()
# A graft that takes the final error down by this factor has found the cause.
_HEALED = 0.1
# The factor for a coarse dtype, whose rounding stays behind.
_HEALED_COARSE = 0.3
# A module that holds so large a part of all modules is the model.
_MOST_OF_ALL = 0.8
_COARSE = (torch.float16, torch.bfloat16)


def as_trial(
    comparison: Comparison,
    *,
    local: bool,
    known: frozenset[tuple[str, str]] = frozenset(),
    kept: frozenset[str] = frozenset(),
) -> Trial:
    """Return the results of a pass as a tree of calls.

    `local` judges each call by its own error only. `known` are arguments that do no harm, see `Trial`. `kept` are the
    root's outputs that an earlier pass showed to be a cache in a convention of the candidate's.
    """
    made: dict[int, CallRecord] = {}
    roots: list[CallRecord] = []
    numbers: dict[int, int] = defaultdict(_NUMBERS.__next__)
    for met in comparison.met:
        own = {**dict.fromkeys(kept if met.call.key == "" else ()), **met.kept}
        record = _record(comparison, met, numbers, own, local=local)
        made[id(met)] = record
        (made[id(met.parent)].children if met.parent is not None else roots).append(record)
    return Trial(tuple(roots), known)


def kept_in(comparison: Comparison) -> frozenset[str]:
    """Return the root's outputs that are a cache in a convention of the candidate's."""
    return frozenset(path for met in comparison.met if met.call.key == "" for path in met.kept)


def _record(
    comparison: Comparison, met: CallPair, numbers: dict[int, int], kept: Mapping[str, Relation | None], *, local: bool
) -> CallRecord:
    call = met.call
    inner = max(LOCAL_DEPTH, call.order - call.entry)
    depth_in, depth_out = (LOCAL_DEPTH, inner) if local else (call.entry, call.order)
    converted = comparison.forcing is not None and met.call.key in comparison.forcing.converted

    def values(pairs: list[tuple[str, Pair]], mark: str, depth: int) -> tuple[Value, ...]:
        # Attention weights that another kernel does not return are no loss to callers that use the other outputs.
        others = mark == OUT and any(pair.measurement is not None for _, pair in pairs)
        wheres = [None if local else place(met, mark, name) for name, _ in pairs]
        return tuple(
            _value(
                name,
                pair,
                comparison.agrees(pair, depth, where) or (others and _is_left_out(pair)),
                mark + name in met.forced,
                converted,
                numbers[id(pair)],
            )
            if mark == IN or name not in kept
            else _kept(name, pair, kept[name], numbers[id(pair)])
            for (name, pair), where in zip(pairs, wheres, strict=True)
        )

    sites = tuple(None if site is None else _plain_site(site) for site in met.sites)
    return CallRecord(
        module=call.key if call.key is not None else call.path,
        type=call.type,
        call=call.index,
        entry=call.entry,
        order=call.order,
        arguments=values(met.arguments, IN, depth_in),
        outputs=values(met.outputs, OUT, depth_out),
        side="reference" if met.candidate is None else "candidate" if met.reference is None else None,
        has_data=call.has_data,
        raised=met.raised,
        ended=met.ended,
        sites=(sites[0], sites[1]),
        candidate_entry=met.candidate.entry if met.candidate is not None and met.reference is not None else None,
    )


def _is_left_out(pair: Pair) -> bool:
    """Return whether one side has nothing, or None, where the other has a value."""
    if pair.status in ONE_SIDED:
        return True
    kinds = [spec.type if spec is not None else None for spec in (pair.reference, pair.candidate)]
    return pair.measurement is None and kinds.count("NoneType") == 1


def _kept(name: str, pair: Pair, relation: Relation | None, key: int) -> Value:
    """Return an output that only the candidate itself reads, so that it counts as no error."""
    return Value(
        name,
        True,
        error=0.0,
        rel_l2=0.0,
        relation=relation,
        reference=pair.reference,
        candidate=pair.candidate,
        key=key,
    )


def _value(name: str, pair: Pair, agrees: bool, forced: bool, converted: bool, key: int) -> Value:
    found = pair.statistics()
    related = pair.relation.error if pair.relation is not None and pair.relation.kind == "mask" else None
    if converted and excuses(pair.relation):
        # In the candidate's convention the two are the same.
        agrees, related = True, pair.peir_related()
    return Value(
        name=name,
        agrees=agrees,
        forced=forced,
        status=found.status,
        error=found.peir if related is None else related,
        related=pair.peir_related(),
        rel_l2=found.rel_l2,
        relation=pair.relation,
        reference=pair.reference,
        candidate=pair.candidate,
        deliberate=pair.relation is not None and pair.relation.kind in DELIBERATE,
        key=key,
    )


def _plain_site(site: Site) -> tuple[str, int, str]:
    return site.file, site.line, site.function


@dataclass(slots=True)
class Kept:
    """One call: the paths of the called module, and the arguments and outputs of both sides."""

    paths: tuple[str, str]
    samples: tuple[Sample, Sample]
    returned: tuple[Fingerprint, Fingerprint] | None = None
    is_proven: bool = False


class Runner:
    """Runs the passes of an investigation; `before` is the final error with nothing healed.

    `reference_again` is the reference's output in a graft, which hooks hardly any module. `kept` are the outputs that
    are a cache in another convention. `floor` is the error that the rounding of the whole models explains.

    `is_coarse` says that the two models hold parameters of other dtypes, or of half precision: then much of the
    difference is rounding.
    """

    def __init__(
        self, models: tuple[Model, Model], plan: Plan, sample: Any, options: Options, own_random: bool
    ) -> None:
        self.models = models
        self.plan = plan
        self.before: float | None = None
        self.kept: frozenset[str] = frozenset()
        # The final outputs by which grafts are judged, all of them where it is empty.
        self.read: frozenset[str] = frozenset()
        # Arguments, by (class of the callee, name), that do no harm; those that the candidate may have in a form of its
        # own; and the suspects that pass these.
        self.harmless: frozenset[tuple[str, str]] = frozenset()
        self.doubtful: frozenset[tuple[str, str]] = frozenset()
        self.aside: list[Suspect] = []
        self.reference_again: Fingerprint | None = None
        self._answering: dict[str, list[str]] = {}
        for path, key in plan.candidate_keys.items():
            self._answering.setdefault(key, []).append(path)
        dtypes = [{p.dtype for p in model.root.parameters()} for model in models]
        self.is_coarse = dtypes[0] != dtypes[1] or any(dtype in _COARSE for dtype in dtypes[0])
        self._dtypes = dtypes[0] | dtypes[1]
        self.floor = rounding_tolerance(sorted(self._dtypes, key=str), len(plan.reference_keys))
        self.sample = sample
        self.own_random = own_random
        self.options = replace(options, only=(), skip=(), listeners=(None, None), progress=None)

    def computes_without_codes(self) -> None:
        """Take into account that codes, of whatever dtype, were replaced by the values that they stand for."""
        self._dtypes = {dtype for dtype in self._dtypes if dtype.is_floating_point and dtype.itemsize > 1}
        self.is_coarse = len(self._dtypes) > 1 or any(dtype in _COARSE for dtype in self._dtypes)
        self.floor = rounding_tolerance(sorted(self._dtypes, key=str), len(self.plan.reference_keys))

    def computes_in(self, coarser: Collection[str]) -> None:
        """Take into account that the candidate computes in these dtypes as well, whatever its parameters are."""
        if coarser:
            self.is_coarse = True
            self._dtypes |= {getattr(torch, name) for name in coarser}
            self.floor = rounding_tolerance(sorted(self._dtypes, key=str), len(self.plan.reference_keys))

    def run(
        self,
        forcing: Forcing,
        listeners: tuple[Listener | None, Listener | None] = (None, None),
        *,
        plan: Plan | None = None,
        around: Callable[[Comparison], Meeting] | None = None,
        only: Kept | None = None,
    ) -> Pass:
        """Run one pass, with another plan where one is given; see `Pass` for `around`.

        With `only` that one call is run, and not the whole models. An error that a model raises is in the pass's
        `ends`; Ctrl-C is raised.
        """
        done = Pass(
            self.models,
            plan or self.plan,
            self.sample if only is None else only.samples[REFERENCE],
            replace(self.options, listeners=listeners),
            candidate_sample=None if only is None else only.samples[CANDIDATE],
            own_random=self.own_random,
            forcing=forcing,
            around=around,
            at=("", "") if only is None else only.paths,
        )
        done.execute()
        for end in done.ends:
            if isinstance(end.error, KeyboardInterrupt):
                raise end.error
        return done

    def of(self, models: tuple[Model, Model]) -> Runner:
        """Return a runner of the same sample with other models under the same plan."""
        return Runner(models, self.plan, self.sample, self.options, self.own_random)

    def pass_without_forcing(
        self, listeners: tuple[Listener | None, Listener | None] = (None, None)
    ) -> Comparison | None:
        """Return the comparison of a pass without forcing; None where a model raises."""
        options = replace(self.options, listeners=listeners)
        done = Pass(self.models, self.plan, self.sample, options, own_random=self.own_random)
        done.execute()
        for end in done.ends:
            if isinstance(end.error, KeyboardInterrupt):
                raise end.error
        return None if done.raised() else done.comparison

    def final_after(
        self, found: Sequence[Suspect], listeners: tuple[Listener | None, Listener | None] = (None, None)
    ) -> float | None:
        """Return the final error with these suspects healed and everything else left as it is; None if it raises."""
        at_entries = [suspect for suspect in found if suspect.entries]
        entries = {name for suspect in at_entries for name in suspect.entries}
        names = {suspect.argument for suspect in at_entries if suspect.argument is not None}
        exits = {module for suspect in found if not suspect.entries for module in suspect.modules}
        chosen = names.__contains__ if entries else None
        forcing = Forcing(entries=entries, exits=exits, names=chosen, resizes_outputs=True)
        # Only at the healed boundaries, and at the end, must the sides wait for each other.
        done = self.run(forcing, listeners, plan=self.plan.restricted(entries | exits))
        if done.raised():
            return None
        self.reference_again = done.fingerprints[0]
        return as_trial(done.comparison, local=False, kept=self.kept).final_error(self.read)

    def comes_out_right(self, container: Suspect, child: Suspect) -> bool:
        """Return whether a container's own code is right on the reference's arguments once a child in it is healed.

        The child's own arguments must be right then: else its graft would hide what another module did to them.
        """
        entries, exits = set(container.modules), set(child.modules)
        callees = set(container.callees) if container.callee is not None else set()
        forcing = Forcing(entries=entries, exits=exits, harmless=self.harmless)
        done = self.run(forcing, plan=self.plan.restricted(entries | exits | callees))
        if done.raised():
            return False
        trial = as_trial(done.comparison, local=True, known=self.harmless)
        calls = [call for call in trial.calls if call.side is None]
        healed = [call for call in calls if call.module in exits]
        if container.callee is None:
            values = [value for call in calls if call.module in entries for value in call.outputs]
        else:
            name = container.value.name if container.value is not None else container.argument
            values = [v for call in calls if call.module in callees for v in call.arguments if v.name == name]
        are_right = all(value.agrees for value in values)
        return bool(healed and values) and are_right and all(trial.takes_right(call) for call in healed)

    def relieves(self, module: str) -> bool:
        """Return whether the final error falls visibly with the reference's data in this one module."""
        return self.is_relieved(self.final_with_parameters(module), self.before)

    def final_with_parameters(self, module: str) -> float | None:
        """Return the final error with the reference's parameters and buffers in this one module."""
        mine = self.models[0].modules[module]
        changes: list[tuple[torch.Tensor, torch.Tensor]] = []
        for theirs in self.partners(module)[-1:]:
            for name, tensor in (*theirs._parameters.items(), *theirs._buffers.items()):
                other = held_tensor(mine, name)
                if tensor is not None and other is not None and tensor.shape == other.shape:
                    changes.append((tensor, other))
        return self.final_with(changes)

    def final_with(self, changes: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
        """Return the final error with other values in tensors of the candidate, (tensor, values); they are put back.

        None where a tensor cannot be written, as an expanded one.
        """
        with torch.no_grad():
            # All are kept before the first is written: two of them may share their storage.
            own = [tensor.clone() for tensor, _ in changes]
            written = 0
            try:
                for tensor, values in changes:
                    try:
                        tensor.copy_(values)
                    except RuntimeError:
                        return None
                    written += 1
                return self.final_after([])
            finally:
                for (tensor, _), kept in zip(changes[:written], own[:written], strict=True):
                    tensor.copy_(kept)

    def is_whole(self, module: str) -> bool:
        """Return whether a module is the whole model: the root, or the one below it that has only leaves beside it."""
        if not module:
            return True
        modules = self.models[REFERENCE].modules
        below = [path for path in self.plan.reference_keys if path]
        inside = [path for path in below if path == module or path.startswith(f"{module}.")]
        beside = [path for path in below if "." not in path and path != module]
        are_leaves = all(not any(True for _ in modules[path].children()) for path in beside)
        return "." not in module and are_leaves and len(inside) >= _MOST_OF_ALL * len(below)

    def is_relieved(self, after: float | None, before: float | None) -> bool:
        """Return whether a final error is visibly below another one."""
        return after is not None and before is not None and after < RELIEVED * before

    def is_healed(self, after: float | None) -> bool:
        """Return whether a final error is far below the one before, or no more than rounding explains.

        Far is ten times, in a coarse dtype three. If the error before has no number, any number counts as healed.
        """
        if after is None or self.before is None:
            return False
        if math.isinf(self.before):
            return after < math.inf
        return after <= max((_HEALED_COARSE if self.is_coarse else _HEALED) * self.before, self.floor)

    def parting(self, module: str, call: int) -> Sites | None:
        """Return the lines of a module's own code where the two sides part; see `operators.pinpoint`."""
        found = Target(self.models, self.plan, self.sample, module, self.options.call)
        return pinpoint(found, call, self.options.floors)

    def during(self, module: str, call: int, during: CallProbe) -> None:
        """Run the reference by itself, and report one call of one of its modules to `during`."""
        reference = self.models[REFERENCE]
        run = reference.entry(self.options.call, copied(self.sample))
        with buffers_kept([reference]):
            run_with_probe(reference.modules[module], call, during, run)

    def answering(self, key: str) -> list[str]:
        """Return the candidate's paths aligned with a reference path, a wrapper before the modules inside it."""
        return self._answering.get(key, [])

    def partners(self, key: str) -> list[torch.nn.Module]:
        """Return the candidate's modules of `answering`."""
        return [self.models[1].modules[path] for path in self.answering(key)]
