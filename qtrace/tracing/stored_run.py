"""Runs a pair with at least one stored trace: the same rows, coverage and outcome as for two live models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from qtrace.diagnosis.accumulated_errors import accumulated
from qtrace.diagnosis.crash import raised
from qtrace.diagnosis.naming import evidence_for, finding_of
from qtrace.diagnosis.operators.code import Line, forward_of, source_of
from qtrace.diagnosis.outliers import is_noisy
from qtrace.diagnosis.runner import as_trial
from qtrace.diagnosis.static_differences import attribute_differences
from qtrace.diagnosis.suspects import Suspect
from qtrace.diagnosis.tensor_differences import tensor_differences
from qtrace.engine.events import End
from qtrace.engine.lockstep import CANDIDATE
from qtrace.engine.lockstep_pass import Options, Pass
from qtrace.engine.model import Model
from qtrace.engine.plan import Plan
from qtrace.engine.samples import Sample
from qtrace.errors import UsageError
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import Finding, ReportData, Row, Side, Status, TensorSpec
from qtrace.traces.excerpt import SketchComparer
from qtrace.traces.manifest import Manifest, StoredInput, StoredParameter
from qtrace.traces.reader import Trace
from qtrace.traces.skeleton import Skeleton, inputs_of, parameter, trace_of
from qtrace.traces.stored_side import StoredSide
from qtrace.tracing.outcome import NAMES, SampleOutcome
from qtrace.tracing.run import Run

Traces = tuple[Trace | None, Trace | None]


class StoredPass(Pass):
    """A pass in which `traces`, where given, replace the models; see `qtrace.engine.lockstep_pass.Pass`."""

    def __init__(
        self, models: tuple[Model, Model], traces: Traces, plan: Plan, sample: Any, options: Options, **more: Any
    ) -> None:
        there = [trace.manifest for trace in traces if trace is not None]
        arguments = all(manifest.arguments for manifest in there)
        super().__init__(models, plan, sample, options, **more)
        if not arguments:
            self.comparison.outputs_only = frozenset(plan.reference_keys.values())
        if any(manifest.sketches for manifest in there):
            self.comparison.comparer = SketchComparer()
        keys = plan.reference_keys, plan.candidate_keys
        sides = list(self.sides)
        for number, trace in enumerate(traces):
            if trace is not None:
                sides[number] = StoredSide(  # type: ignore[call-overload]
                    trace,
                    self.comparison.sample,
                    keys[number],
                    modules=models[number].modules,
                    listener=options.listeners[number],
                    passed=self.comparison.passed if number == 0 else None,
                    arguments=arguments,
                )
        self.sides = (sides[0], sides[1])
        self.comparison.sites = lambda: (self.sides[0].site(), self.sides[1].site())


def finding(rank: int, suspect: Suspect, models: tuple[Model, Model], plan: Plan) -> Finding:
    """Return the finding for a suspect for which there is only accumulated evidence."""
    mine = models[0].modules.get(suspect.module)
    partners = [models[1].modules[path] for path, key in plan.candidate_keys.items() if key == suspect.module]
    is_own = mine is not None and suspect.kind in ("introduces", "miscalls")
    static = tuple(differences(mine, partners)) if mine is not None and is_own else ()
    if static and suspect.kind == "miscalls" and _is_of_one_form(suspect):
        # Correct code computes a different result from different parameters.
        suspect = dataclasses.replace(suspect, kind="introduces", argument=None, callees=[])
    call = suspect.callee
    sites = call.sites if call is not None else (None, None)
    if sites == (None, None):
        sites = (_forward(mine), _forward(partners[0] if partners else models[1].root))
    return finding_of(
        suspect,
        rank,
        static,
        evidence=(*evidence_for(suspect, static), *_others(suspect)),
        source=source_of(*sites),
    )


def differences(reference: torch.nn.Module, candidates: list[torch.nn.Module]) -> Iterator[str]:
    """Yield the differences between a module and its partners, in words; of stored weights only that they differ."""
    yield from attribute_differences(reference, candidates)
    if not any(isinstance(module, Skeleton) for module in (reference, *candidates)):
        yield from tensor_differences(reference, candidates)
        return
    for kind in ("parameters", "buffers"):
        mine = _held(reference, kind)
        for name, one in mine.items():
            others = [held[name] for held in (_held(other, kind) for other in candidates) if held.get(name) is not None]
            theirs = others[0] if others else None
            if one is None or theirs is None or one == theirs:
                continue
            if (one.shape, one.dtype) != (theirs.shape, theirs.dtype):
                yield f"{name} {one.dtype} {list(one.shape or ())} against {theirs.dtype} {list(theirs.shape or ())}"
            elif one.digest is not None and theirs.digest is not None:
                yield f"{name} differs"


def _is_of_one_form(suspect: Suspect) -> bool:
    value = suspect.value
    return value is not None and value.status is Status.COMPARED and value.reference == value.candidate


def _others(suspect: Suspect) -> Iterator[str]:
    """Yield the further wrong arguments of a call: only a trial could show which argument causes the error."""
    if suspect.callee is not None and suspect.kind == "miscalls":
        wrong = [v.name for v in suspect.callee.arguments if not v.agrees and v.status is not Status.CANDIDATE_ONLY]
        others = [name for name in wrong if name.split(".")[0] != suspect.argument]
        if others:
            yield f"{', '.join(others)} of {suspect.callee.module} differs as well; which does the harm was not tried"


def _held(module: torch.nn.Module, kind: str) -> dict[str, StoredParameter | None]:
    if isinstance(module, Skeleton):
        return {} if module.stored is None else dict(getattr(module.stored, kind))
    tensors: dict[str, torch.Tensor | None] = getattr(module, f"_{kind}")
    return {name: None if tensor is None else parameter(tensor) for name, tensor in tensors.items()}


def _forward(module: torch.nn.Module | None) -> Line | None:
    if isinstance(module, Skeleton):
        return None if module.stored is None else module.stored.forward
    return None if module is None else forward_of(module)


# The float dtypes that `--as` rounds.
WIDER = ("float64", "float32")


class StoredModel(Model):
    """The model of a stored side, which its trace describes and which cannot run."""

    def describe(self) -> Side:
        """Return the trace's description of the model."""
        trace = trace_of(self.root)
        assert trace is not None
        stored = trace.manifest.model
        return dataclasses.replace(stored, source=f"{self.source or trace.name}, captured from {stored.source}")

    def entry(self, call: str, sample: Any, at: str = "") -> Any:
        """Return a function that does nothing: the events come from the trace."""
        return lambda: None


class StoredRun(Run):
    """A run in which at least one side is the skeleton of a trace (see `qtrace.traces.skeleton`).

    Between two traces, `samples` only give their number; with a live model they must be the inputs that the trace was
    captured with.

    Raises `UsageError` where the two traces were captured in ways that cannot be compared.
    """

    def __init__(
        self, reference: torch.nn.Module, candidate: torch.nn.Module, samples: Sequence[Any], options: Options
    ) -> None:
        self._traces: Traces = (trace_of(reference), trace_of(candidate))
        self._manifests = [trace.manifest for trace in self._traces if trace is not None]
        self._both = len(self._manifests) == 2
        if options.measure_noise and self._traces[0] is not None:
            raise UsageError("the noise of a stored reference cannot be measured; give --noise-floor a number")
        if self._both:
            samples = [Sample()] * len(self._manifests[0].samples)
        super().__init__(reference, candidate, samples, options)
        self._inputs = self._manifests[0].inputs if self._both else inputs_of(samples)
        self._check(len(samples))
        if options.local:
            self._warn(
                "the error that each module makes by itself cannot be measured: a stored side takes no other values"
            )
        for warning in _warnings(self._traces):
            self._warn(warning)

    def report(self) -> ReportData:
        """Return what was found until now."""
        told = [{f.name: getattr(one, f.name) for f in dataclasses.fields(one)} for one in self._inputs]
        done = super().report()
        stored = [name for name, trace in zip(NAMES, self._traces, strict=True) if trace is not None]
        return dataclasses.replace(done, inputs=tuple(told), settings={**done.settings, "stored": stored})

    def judged(self, final: Sequence[Row], floors: Floors) -> SampleOutcome:
        """Return the judgement by the root's rows; an output that was rounded for storage only needs that precision."""
        trace = self._traces[CANDIDATE]
        rounded = _rounded(trace.manifest) if trace is not None else frozenset()
        return super().judged([_as_rounded(row) if row.output in rounded else row for row in final], floors)

    def _check(self, samples: int) -> None:
        """Refuse traces that cannot be compared; warn of results that may be misleading."""
        for name, trace in zip(NAMES, self._traces, strict=True):
            if trace is None:
                continue
            manifest = trace.manifest
            if manifest.call != self._options.call:
                raise UsageError(
                    f"the {name} {trace.folder} was captured by --call {manifest.call}, not {self._options.call}; "
                    f"give --call {manifest.call}"
                )
            if len(manifest.samples) != samples:
                raise UsageError(
                    f"the {name} {trace.folder} was captured on another number of samples, {len(manifest.samples)} "
                    f"and not {samples}; capture both on the same inputs"
                )
            for wrong in _other_inputs(self._inputs, manifest):
                if wrong[1]:
                    raise UsageError(
                        f"the {name} {trace.folder} was captured on other inputs: {wrong[0]}; "
                        "capture both on the same ones"
                    )
                self._warn(f"the {name} was captured on inputs of another dtype: {wrong[0]}")

    def model_of(self, side: int, model: torch.nn.Module, source: str) -> Model:
        """Return a model, or the skeleton of one."""
        return (Model if self._traces[side] is None else StoredModel)(NAMES[side], model, source)

    def part_of(self, plan: Plan) -> Plan:
        """Return the plan that compares only the calls that every trace records."""
        return _stored_part(plan, self._traces)

    def pass_of(self, sample: Any, options: Options, **more: Any) -> StoredPass:
        """Return a pass in which traces replace the models."""
        return StoredPass(self._models, self._traces, self.plan, sample, options, **more)

    def look_into(self, done: Pass) -> list[Finding]:
        """Return the findings for the first sample whose final outputs differ, by accumulated errors."""
        if not self._differing:
            return []
        missing = self._missing()
        if missing:
            self._not_looked_for(missing)
            return []
        trial = as_trial(done.comparison, local=False)
        found = accumulated(trial)
        if not found and not is_noisy(trial):
            self._not_looked_for("what accumulated does not tell it from rounding")
        return [finding(rank, suspect, self._models, self.plan) for rank, suspect in enumerate(found, 1)]

    def crash_findings(self, end: End, done: Pass) -> list[Finding]:
        """Return the module that raised: the reference has run, and no tensor can be forced here."""
        return [] if self._traces[CANDIDATE] is not None else [raised(self.plan, done, end)]

    def _not_looked_for(self, why: str) -> None:
        """Judge the outcome as one without a search: an unexplained difference is no drift."""
        self._warn(f"which module is at fault was not found out: {why}; the first leap shows where to look")
        self._options = dataclasses.replace(self._options, local=False)

    def _missing(self) -> str:
        """Return why no module can be named as faulty; an empty text where all data is present."""
        if not all(manifest.arguments for manifest in self._manifests):
            return "a trace holds no arguments (--outputs-only, or imported)"
        if any(manifest.sketches for manifest in self._manifests):
            return "a trace holds sketches only (--stats-only)"
        if self._options.only or self._options.skip:
            return "a part of the modules is left out (--only, --skip)"
        if any(len(m.selected) < sum(one.alias_of is None for one in m.modules) for m in self._manifests):
            return "a trace holds a part of the modules (--only, --skip)"
        return ""


def _rounded(manifest: Manifest) -> frozenset[str]:
    """Return the paths of the final outputs that were rounded to be stored (`--as`)."""
    roots = [call for sample in manifest.samples for call in sample.calls if call.module == ""]
    leaves = [leaf for root in roots for leaf in root.outputs.leaves]
    stored = [(leaf.path, manifest.tensors[leaf.tensor]) for leaf in leaves if leaf.tensor is not None]
    return frozenset(path for path, one in stored if one.dtype in ("F16", "BF16") and one.spec.dtype in WIDER)


def _as_rounded(row: Row) -> Row:
    mine, theirs = row.reference, row.candidate
    if mine is None or theirs is None or mine.dtype not in WIDER:
        return row
    return dataclasses.replace(row, reference=dataclasses.replace(mine, dtype=theirs.dtype))


def _stored_part(plan: Plan, traces: Traces) -> Plan:
    """Return the plan that compares only the calls that every trace records."""
    reference, candidate = (None if trace is None else set(trace.manifest.selected) for trace in traces)
    mine = {path: key for path, key in plan.reference_keys.items() if reference is None or path in reference}
    theirs = {
        path: key
        for path, key in plan.candidate_keys.items()
        if key in mine and (candidate is None or path in candidate)
    }
    chosen = plan.chosen
    if reference is not None:
        chosen &= reference
    if candidate is not None:
        # Modules that the candidate's capture left out are left out here; modules without a partner then have none now.
        left_out = {key for path, key in plan.candidate_keys.items() if path not in candidate} - set(theirs.values())
        chosen -= left_out
        mine = {path: key for path, key in mine.items() if key not in left_out}
    return dataclasses.replace(plan, chosen=chosen | {""}, reference_keys=mine, candidate_keys=theirs)


def _other_inputs(inputs: Sequence[StoredInput], manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Yield each input that a trace was not captured with, and whether more than its dtype differs."""
    known = {(one.sample, one.name): one for one in manifest.inputs}
    if not known:
        return
    mine = {(one.sample, one.name): one for one in inputs}
    for key in sorted(known.keys() | mine.keys()):
        stored, given = known.get(key), mine.get(key)
        which = key[1] if len(manifest.samples) == 1 else f"{key[1]} of sample {key[0]}"
        if stored is None or given is None:
            yield f"{which} is {'not there' if given is None else 'new'}", True
        elif stored.digest != given.digest:
            specs = stored.spec, given.spec
            cast = specs[0].shape == specs[1].shape and specs[0].dtype != specs[1].dtype
            yield f"{which} {_said(specs[0])} there, {_said(specs[1])} here", not cast


def _said(spec: TensorSpec) -> str:
    return f"{spec}" + (f" from {spec.min:g} to {spec.max:g}" if spec.min is not None and spec.max is not None else "")


def _warnings(traces: Traces) -> Iterator[str]:
    """Yield warnings about the traces that a reader must know before trusting the report."""
    manifests = {name: trace.manifest for name, trace in zip(NAMES, traces, strict=True) if trace is not None}
    for name, manifest in manifests.items():
        yield from manifest.warnings
        if manifest.draws_random:
            yield f"the {name} drew random numbers when it was captured: differences may be theirs"
        if manifest.cast is not None:
            yield f"the {name} was captured as {manifest.cast}: what is below its rounding does not show"
    if any(manifest.sketches for manifest in manifests.values()):
        yield (
            "compared by sketches of at most 1024 elements a tensor: "
            "max and PEIR are lower bounds, mean and the rest estimates"
        )
