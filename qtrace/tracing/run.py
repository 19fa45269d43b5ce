"""Runs a pair of models over samples of inputs, from plan to report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import qtrace
from qtrace.diagnosis.crash import crash_findings
from qtrace.diagnosis.investigation import Investigation
from qtrace.diagnosis.quantization import facts_by_path, problem_notes, with_interval
from qtrace.diagnosis.runner import as_trial
from qtrace.diagnosis.self_check import FirstPass, SelfCheck, self_check
from qtrace.diagnosis.static_differences import static_report
from qtrace.diagnosis.trial import verdicts
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import End
from qtrace.engine.lockstep import CANDIDATE, REFERENCE, Attendant, EndRun, Meeting
from qtrace.engine.lockstep_pass import Fingerprint, Options, Pass
from qtrace.engine.model import Model, SharedTensors, devices_of
from qtrace.engine.plan import Plan, better_plan, make_plan
from qtrace.engine.samples import describe_inputs, environment
from qtrace.engine.torch_state import RandomState
from qtrace.errors import ForwardError, Interrupted, first_line
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import Coverage, Finding, Outcome, QuantFacts, ReportData, Row, Verdict
from qtrace.tracing.aggregate import Aggregate
from qtrace.tracing.noise_floor import measured_floors
from qtrace.tracing.outcome import (
    NAMES,
    CallCounts,
    SampleOutcome,
    absent_outputs,
    is_too_little,
    outcome,
    sample_outcome,
)

# Just below the largest block size that raises glibc's limits (DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB).
_LARGE = 31 * 2**20


def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB of freed tensor memory, instead of returning it at every module.

    glibc maps large blocks one by one, and returns free memory at the top of its heap to the system. Both happen beyond
    limits that follow the largest block ever freed (mallopt(3), M_MMAP_THRESHOLD). Two models whose activations come
    and go together exceed these limits at every module, and each page must then be mapped again: at 512 tokens this
    causes two thirds of all page faults of a trace. One large block that is freed, and never touched, raises the
    limits. With another C library this does nothing.
    """
    torch.empty(_LARGE, dtype=torch.uint8)


@contextlib.contextmanager
def process_state_kept(models: Sequence[Model]) -> Iterator[None]:
    """Run without gradients, run compiled models eagerly, and restore the caller's random state."""
    random = RandomState(devices_of(models))
    keep_freed_memory()
    # Hooks and rows are many small objects, enough to make the collector walk the whole program again, which takes
    # longer than making them. Objects that exist already are excluded from collection for that time.
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if any(model.is_compiled() for model in models) or "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            random.restore()
            if freezes:
                gc.unfreeze()


# How many of the differing samples are named.
_MOST_NAMED = 5
# The calls around a row may explain more than its own numbers: even another shape may be undone there.
_EXPLAINABLE = (None, Verdict.STRUCTURE, Verdict.NON_FINITE)


class Run:
    """Runs the pair sample by sample and collects the results; `report()` may be called at any time.

    `attendant`, if given, is called wherever both sides reach the same boundary; it may end the run.
    """

    def __init__(
        self, reference: torch.nn.Module, candidate: torch.nn.Module, samples: Sequence[Any], options: Options
    ) -> None:
        self._models = (
            self.model_of(REFERENCE, reference, options.sources[REFERENCE]),
            self.model_of(CANDIDATE, candidate, options.sources[CANDIDATE]),
        )
        self._samples = samples
        self._options = options
        self.attendant: Attendant | None = None
        self.plan = self.part_of(make_plan(*self._models, options.only, options.skip, renames=options.renames))
        self._running: Pass | None = None
        # The first pass that differs, or the first of all until one differs; the others are in the sums below.
        self._kept: Pass | None = None
        self._others = Aggregate()
        self._calls = CallCounts(self.plan, self._models[REFERENCE])
        self._ending = SampleOutcome()
        self._differing: list[int] = []
        self._findings: list[Finding] = []
        self._investigation: Investigation | None = None
        self._static: tuple[str, ...] = ()
        self._quantization: dict[str, QuantFacts] = {}
        self._shared = SharedTensors(self._models)
        self._error: str | None = None
        self._done = 0
        self._warnings = [warning for model in self._models for warning in model.warnings()]
        self._warnings += self.plan.alignment.doubts
        if reference is candidate:
            self._warn("reference and candidate are one object: what was changed in place changed both")

    # Methods that a run with a stored side overrides.

    def model_of(self, side: int, model: torch.nn.Module, source: str) -> Model:
        """Return the run's view of one of the two models."""
        return Model(NAMES[side], model, source)

    def part_of(self, plan: Plan) -> Plan:
        """Return the part of a plan that can be compared."""
        return plan

    def pass_of(
        self,
        sample: Any,
        options: Options,
        *,
        index: int = 0,
        own_random: bool = True,
        progress: Callable[[], None] | None = None,
        around: Callable[[Comparison], Meeting] | None = None,
    ) -> Pass:
        """Return a pass over one sample that has not run yet."""
        return Pass(
            self._models,
            self.plan,
            sample,
            options,
            index=index,
            own_random=own_random,
            progress=progress,
            around=around,
        )

    def judged(self, final: Sequence[Row], floors: Floors) -> SampleOutcome:
        """Return the judgement of one sample by the root's rows."""
        return sample_outcome(final, floors)

    def look_into(self, done: Pass) -> list[Finding]:
        """Return the findings for a pass, best first; in any case measure the error that each module makes itself."""
        sample, options = self._samples[done.comparison.sample], self._with(done.comparison.floors)
        investigation = Investigation(self._models, self._whole_plan, sample, options, done.own_random, done.comparison)
        self._investigation = investigation
        if not self._differing:
            investigation.observe()
            return []
        first, *others = self._differing
        if others:
            named = ", ".join(map(str, others[:_MOST_NAMED]))
            named += f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
            self._warn(f"samples {named} differ as well: only {first} was looked into; trace the others alone")
        found = investigation.findings()
        for warning in investigation.warnings:
            self._warn(warning)
        check = self._self_check(done, investigation.reference_again())
        return check.applied(found)

    def crash_findings(self, end: End, done: Pass) -> list[Finding]:
        """Return the findings where the candidate raised an exception."""
        return crash_findings(
            self._models, self._whole_plan, self._samples, self._with(done.comparison.floors), done, end
        )

    @cached_property
    def _whole_plan(self) -> Plan:
        """Return the plan without exclusions: the faulty module may be outside of the compared modules."""
        if not self._options.only and not self._options.skip:
            return self.plan
        return self.part_of(make_plan(*self._models, renames=self._options.renames))

    def execute(self) -> ReportData:
        """Run all samples and return the report.

        Raises `ForwardError` when a model raises an exception and `Interrupted` on Ctrl-C; both carry the report of
        what was compared until then. No hook is left in any case.
        """
        try:
            with process_state_kept(self._models):
                for index, sample in enumerate(self._samples):
                    self._run_sample(index, sample)
                self._investigate()
                self._read_quantizers()
        except EndRun as ended:
            self._error = str(ended)
            if self._running is not None:
                self._take(self._running)
        except KeyboardInterrupt as error:
            self._error = "interrupted"
            if self._running is not None:
                self._take(self._running)
            raise Interrupted("interrupted; what was compared until then is reported", report=self.report()) from error
        return self.report()

    def _investigate(self) -> None:
        """Find the faulty module for the first sample whose final outputs differ; measure each module's own error."""
        if self._options.local is False or is_too_little(self._calls.coverage(), self._options):
            return
        done = self._kept
        if done is None or not (self._differing or self._options.local):
            return
        self._findings = self.look_into(done)
        if self._differing:
            self._static = tuple(map(str, static_report(self._models, self._whole_plan)))

    def _read_quantizers(self) -> None:
        """Read how the candidate quantizes, from its modules; nothing runs."""
        if self._options.local is not False:
            self._quantization = facts_by_path(self._models, self.plan.candidate_keys)
            if self._differing and self._kept is not None:
                ran = {row.module for row in self._kept.comparison.rows()}
                wrong = {path: facts for path, facts in self._quantization.items() if path in ran}
                self._static += tuple(map(str, problem_notes(wrong)))

    def _self_check(self, done: Pass, again: Fingerprint | None) -> SelfCheck:
        """Search for a cause in the models' own state, before any module is named as faulty."""
        first = FirstPass(done.random, done.fingerprints, done.drew_random, again)
        sample = self._samples[done.comparison.sample]
        check = self_check(self._models, self._whole_plan, sample, self._options.call, first)
        for warning in (*self._shared.warnings(), *check.warnings):
            self._warn(warning)
        return check

    def _take(self, done: Pass) -> None:
        """Add up the results of a pass, and keep only the pass that will be examined."""
        self._running = None
        self._calls.add(done)
        final = done.comparison.final_rows()
        kept = next((row for row in final if row.verdict is Verdict.ABSORBED), None)
        if kept is not None and kept.relation is not None:
            self._warn(
                f"the candidate keeps {kept.output} in another convention ({kept.relation}): "
                "no difference as long as nobody but the candidate reads it"
            )
        absent = absent_outputs(final)
        if absent is not None:
            self._warn(absent)
        end = self.judged(final, done.comparison.floors)
        self._ending += end
        if not end.clean:
            self._differing.append(done.comparison.sample)
        other: Pass | None = done
        if self._kept is None or self._differing == [done.comparison.sample]:
            other, self._kept = self._kept, done
        if other is not None:
            self._others.add(self._explained(other), other.comparison.arguments())

    def _with(self, floors: Floors) -> Options:
        return dataclasses.replace(self._options, floors=floors)

    def _run_sample(self, index: int, sample: Any) -> None:
        """Run one sample, with separate random numbers for each side where it draws any, and add up its results.

        Separating the random numbers costs a little at every module, so models in eval mode first run without it. If
        they draw random numbers after all, the pass is repeated.
        """
        floors = self._options.floors
        if self._options.measure_noise:
            floors, warning = measured_floors(self._models[REFERENCE], sample, self._options)
            if warning is not None:
                self._warn(warning)
        training = any(model.in_training for model in self._models)
        is_heard = any(listener is not None for listener in self._options.listeners)
        attended = self.attendant is not None or is_heard
        own_random = training or attended
        if index == 0 and attended and (is_heard or self.plan.alignment.alone or self.plan.by_order):
            self._look_ahead(sample, floors)
        done = self._execute(index, sample, floors, own_random=own_random)
        if index == 0 and not attended and not done.raised() and self._aligns_better(done):
            done = self._execute(index, sample, floors, own_random=own_random)
        if done.drew_random and not own_random and all(end.error is None for end in done.ends):
            self._warn("random numbers are drawn although both models are in eval mode; each side drew the same ones")
            done = self._execute(index, sample, floors, own_random=True)
        for name, side in zip(NAMES, done.sides, strict=True):
            if side.silent:
                first = side.silent[0] or "<root>"
                self._warn(
                    f"{len(side.silent)} modules of the {name} take no hooks ({first} …): they were not compared"
                )
        self._take(done)
        for end, model in zip(done.ends, self._models, strict=True):
            if end.error is not None:
                self._raise_for(end, model, done)

    def _look_ahead(self, sample: Any, floors: Floors) -> None:
        """Align by the modules that run, before the attended pass: attendant and listeners must see only one pass."""
        options = dataclasses.replace(self._with(floors), listeners=(None, None), progress=None)
        done = self.pass_of(sample, options)
        done.execute()
        for end in done.ends:
            if isinstance(end.error, KeyboardInterrupt):
                raise end.error
        if not done.raised():
            self._aligns_better(done)

    def _aligns_better(self, done: Pass) -> bool:
        """Align again by the modules that ran, where some have no partner; return whether this helped."""
        options, calls = self._options, (done.calls(REFERENCE), done.calls(CANDIDATE))
        agree = self.judged(done.comparison.final_rows(), done.comparison.floors).clean
        doubted = done.comparison.differing() if agree else set()
        better = better_plan(
            self.plan, self._models, calls, options.only, options.skip, renames=options.renames, doubted=doubted
        )
        if better is None:
            return False
        self.plan = self.part_of(better)
        self._calls = CallCounts(self.plan, self._models[REFERENCE])
        return True

    def _execute(self, index: int, sample: Any, floors: Floors, *, own_random: bool) -> Pass:
        done = self.pass_of(
            sample,
            self._with(floors),
            index=index,
            own_random=own_random,
            progress=self._progress,
            around=None if self.attendant is None else self.attendant.around,
        )
        self._running = done
        with contextlib.nullcontext() if self.attendant is None else self.attendant.attending(done.sides):
            done.execute()
        return done

    def _warn(self, warning: str) -> None:
        if warning not in self._warnings:
            self._warnings.append(warning)

    def _progress(self) -> None:
        self._done += 1
        if self._options.progress is not None:
            total = len(self.plan.reference_keys) * len(self._samples)
            self._options.progress(min(self._done, total), total)

    def _raise_for(self, end: End, model: Model, done: Pass) -> None:
        assert end.error is not None
        if isinstance(end.error, KeyboardInterrupt):
            raise end.error
        where = f"{end.module or '<root>'} ({type(model.modules[end.module]).__name__})"
        sample = done.comparison.sample
        which = f" on sample {sample}" if len(self._samples) > 1 else ""
        said = first_line(end.error)
        self._error = (
            f"the {model.name} raised {type(end.error).__name__} in {where}{which}: {said}{_raised_at(end.error)}"
        )
        if model.name == NAMES[CANDIDATE]:
            self._findings = self.crash_findings(end, done)
        raise ForwardError(self._error, side=model.name, module=end.module, report=self.report()) from end.error

    def report(self) -> ReportData:
        """Return the report of the results so far."""
        coverage, floors = self._calls.coverage(), self._options.floors
        all_samples = Aggregate()
        if self._kept is not None:
            all_samples.add(self._explained(self._kept), self._kept.comparison.arguments())
        all_samples.join(self._others)
        reference, candidate = (model.describe() for model in self._models)
        return ReportData(
            qtrace=qtrace.__version__,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            environment=environment(),
            reference=reference,
            candidate=candidate,
            inputs=tuple(describe_inputs(self._samples)),
            outcome=self._outcome(coverage),
            coverage=coverage,
            rows=tuple(self._with_quantization(self._with_own_error(row)) for row in all_samples.rows()),
            arguments=tuple(all_samples.arguments()),
            findings=tuple(self._findings),
            unmatched=tuple(self._calls.unmatched()),
            warnings=(*self._warnings, *([] if self.attendant is None else self.attendant.warnings())),
            static=self._static,
            settings={
                "only": list(self._options.only),
                "skip": list(self._options.skip),
                "tolerance": "auto" if floors.tolerance is None else floors.tolerance,
                "noise_floor": "measured" if self._options.measure_noise else floors.least or "auto",
                "local": self._options.local is not False,
                "call": self._options.call,
                "samples": len(self._samples),
            },
            error=self._error,
        )

    def _outcome(self, coverage: Coverage) -> Outcome:
        if self._error is not None:
            return Outcome.FAULT if self._findings else Outcome.INCONCLUSIVE
        return outcome(self._ending, coverage, self._findings, samples=len(self._samples), options=self._options)

    def _explained(self, done: Pass) -> Iterator[Row]:
        """Yield a pass's rows, with verdicts for the rows that differ."""
        rows = done.comparison.rows()
        found = {}
        if done is self._kept and self._investigation is not None:
            found = self._investigation.verdicts(self._findings)
        elif any(row.verdict in _EXPLAINABLE for row in rows):
            found = verdicts(as_trial(done.comparison, local=False), self._findings)
        for row in rows:
            told = found.get((row.module, row.call, row.output))
            if row.verdict is None or (row.verdict in _EXPLAINABLE and told is Verdict.ABSORBED):
                row = dataclasses.replace(row, verdict=told)
            yield row

    def _with_own_error(self, row: Row) -> Row:
        """Return the row with the error that its module makes itself, where it was measured."""
        local = self._investigation.local.get((row.module, row.call, row.output)) if self._investigation else None
        if local is None:
            return row
        tells = row.relation is None and (local.is_visible or local.is_undone)
        relation = local.relation if tells else row.relation
        return dataclasses.replace(row, peir_local=local.error, relation=relation)

    def _with_quantization(self, row: Row) -> Row:
        """Return the row with its module's quantization, where this was read and the module has a partner there."""
        facts = self._quantization.get(row.module)
        if facts is None or row.candidate is None:
            return row
        # Of several samples the largest difference and the largest ratio may come from different samples.
        interval = row.max / row.peir if row.max and row.peir and row.samples == 1 else None
        return dataclasses.replace(row, quantization=with_interval(facts, interval))


def _raised_at(error: BaseException) -> str:
    """Return the place where the user's own code raised, as " (file:line)"."""
    inner = [Path(torch.__file__).parent, Path(qtrace.__file__).parent]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(parent in Path(frame.filename).parents for parent in inner):
            return f" ({Path(frame.filename).name}:{frame.lineno})"
    return ""
