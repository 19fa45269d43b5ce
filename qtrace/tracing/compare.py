"""Compares where at least one side is a stored trace: the same rows, coverage and outcome as of two live models.

A stored side cannot be handed anything, so nobody's error is measured alone and no finding is confirmed; who is at
fault is judged by what accumulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from qtrace.diagnosis.accumulated import accumulated
from qtrace.diagnosis.crash import raised
from qtrace.diagnosis.outliers import is_noisy
from qtrace.diagnosis.trials import as_trial
from qtrace.engine.driver import CANDIDATE
from qtrace.engine.events import End
from qtrace.engine.model import Model
from qtrace.engine.onepass import Options, Pass
from qtrace.engine.plan import Plan
from qtrace.engine.samples import Sample
from qtrace.errors import UsageError
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import Finding, ReportData, Row, Side, TensorSpec
from qtrace.traces.describe import inputs_of
from qtrace.traces.manifest import Manifest, StoredInput
from qtrace.traces.skeleton import trace_of
from qtrace.tracing.callcounts import NAMES
from qtrace.tracing.findings import finding
from qtrace.tracing.judgement import Ending
from qtrace.tracing.onepass import StoredPass, Traces
from qtrace.tracing.tracing import Run

# Floats that `--as` rounds.
WIDER = ("float64", "float32")


class StoredModel(Model):
    """A stored side's model, which is described by its trace and has nothing to run."""

    def describe(self) -> Side:
        """Return what the trace says of the model."""
        trace = trace_of(self.root)
        assert trace is not None
        stored = trace.manifest.model
        return dataclasses.replace(stored, source=f"{self.source or trace.name}, captured from {stored.source}")

    def entry(self, call: str, sample: Any, at: str = "") -> Any:
        """Return a function that does nothing: the events come out of the trace."""
        return lambda: None


class StoredRun(Run):
    """A run of which at least one side is the skeleton of a trace (see `qtrace.traces.skeleton`).

    Between two traces, `samples` only say how many there are; beside a live model they must be the inputs that the
    trace was captured with.

    Raises `UsageError` where the two were not captured in ways that can be compared.
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

    def judged(self, final: Sequence[Row], floors: Floors) -> Ending:
        """Return what the root's rows say; no more is asked of what a candidate returned than storing it left."""
        trace = self._traces[CANDIDATE]
        rounded = _rounded(trace.manifest) if trace is not None else frozenset()
        return super().judged([_as_rounded(row) if row.output in rounded else row for row in final], floors)

    def _check(self, samples: int) -> None:
        """Refuse what cannot be compared; say what may not mean what it seems to."""
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
        """Return the plan that compares only what every trace tells of."""
        return _stored_part(plan, self._traces)

    def pass_of(self, sample: Any, options: Options, **more: Any) -> StoredPass:
        """Return a pass in which a trace plays its part."""
        return StoredPass(self._models, self._traces, self.plan, sample, options, **more)

    def look_into(self, done: Pass) -> list[Finding]:
        """Judge, by what accumulated, who is to blame for the first sample whose final outputs differ."""
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

    def raising(self, end: End, done: Pass) -> list[Finding]:
        """Return the module that raised: the reference has run, and nobody can hand over anything here."""
        return [] if self._traces[CANDIDATE] is not None else [raised(self.plan, done, end)]

    def _not_looked_for(self, why: str) -> None:
        """Judge the outcome as where nobody looked: a difference that nobody explains is no drift."""
        self._warn(f"who is at fault was not found out: {why}; the first leap shows where to look")
        self._options = dataclasses.replace(self._options, local=False)

    def _missing(self) -> str:
        """Return why nobody can be blamed, nothing where it is all there."""
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
    """Return the plan that compares only what every trace tells of."""
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
        # What was left out when the candidate was captured is left out here; what had no partner then has none now.
        left_out = {key for path, key in plan.candidate_keys.items() if path not in candidate} - set(theirs.values())
        chosen -= left_out
        mine = {path: key for path, key in mine.items() if key not in left_out}
    return dataclasses.replace(plan, chosen=chosen | {""}, reference_keys=mine, candidate_keys=theirs)


def _other_inputs(inputs: Sequence[StoredInput], manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Yield each input that a trace was not captured with, and whether it is beyond another dtype of the same shape."""
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
    """Yield what a reader must know of the traces before believing the report."""
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
