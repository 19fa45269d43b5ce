"""One run of a pair of models over samples of inputs, from plan to report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import qtrace
from qtrace.diagnose import verdicts
from qtrace.errors import ForwardError, Interrupted, first_line
from qtrace.investigation import Investigation, as_trial
from qtrace.lockstep import CANDIDATE, REFERENCE
from qtrace.passes import Options, Pass, copied
from qtrace.passes.fingerprint import Fingerprint
from qtrace.passes.model import Model, devices_of
from qtrace.passes.modelstate import SharedTensors, buffers_kept
from qtrace.passes.plan import Plan, make_plan
from qtrace.probe import End, RandomState
from qtrace.records import Coverage, Finding, Outcome, ReportData, Row, Unmatched, Verdict
from qtrace.run.description import describe_inputs, environment
from qtrace.run.judgement import final, is_clean, is_too_little, outcome
from qtrace.run.memory import keep_freed_memory
from qtrace.run.noise import measured_floors
from qtrace.selfcheck import FirstPass, SelfCheck, self_check
from qtrace.static.report import static_report
from qtrace.tolerance import Floors

NAMES = ("reference", "candidate")
# The calls around a row may say more than its own numbers: another shape, too, may be undone.
_EXPLAINABLE = (None, Verdict.STRUCTURE, Verdict.NON_FINITE)


class Run:
    """Runs the pair sample by sample and collects what was found; `report()` may be called at any time."""

    def __init__(
        self, reference: torch.nn.Module, candidate: torch.nn.Module, samples: Sequence[Any], options: Options
    ) -> None:
        self._models = (
            Model(NAMES[REFERENCE], reference, options.sources[REFERENCE]),
            Model(NAMES[CANDIDATE], candidate, options.sources[CANDIDATE]),
        )
        self._samples = samples
        self._options = options
        self.plan: Plan = make_plan(*self._models, options.only, options.skip)
        self._passes: list[Pass] = []
        self._findings: list[Finding] = []
        self._floors: list[Floors] = []
        self._investigations: dict[int, Investigation] = {}
        self._static: tuple[str, ...] = ()
        self._shared = SharedTensors(self._models)
        self._error: str | None = None
        self._done = 0
        self._warnings = [warning for model in self._models for warning in model.warnings()]
        if reference is candidate:
            self._warn("reference and candidate are one object: what was changed in place changed both")

    @cached_property
    def _whole_plan(self) -> Plan:
        """Return the plan that leaves nothing out: who is to blame may stand outside of what is compared."""
        return make_plan(*self._models) if self._options.only or self._options.skip else self.plan

    def execute(self) -> ReportData:
        """Run all samples and return the report.

        Raises `ForwardError` when a model raises and `Interrupted` on Ctrl-C; both carry the report of what was
        compared until then. No hook is left in any case.
        """
        try:
            with _set_apart(self._models):
                for index, sample in enumerate(self._samples):
                    ends = self._run_sample(index, sample)
                    for end, model in zip(ends, self._models, strict=True):
                        if end.error is not None:
                            self._raise_for(end, model, index)
                self._investigate()
        except KeyboardInterrupt as error:
            self._error = "interrupted"
            raise Interrupted("interrupted; what was compared until then is reported", report=self.report()) from error
        return self.report()

    def _investigate(self) -> None:
        """Find who is to blame for the first sample whose final outputs differ; look at each module's own error."""
        if self._options.local is False or is_too_little(self._coverage(), self._options):
            return
        differing = [index for index in range(len(self._passes)) if self._differs(index)]
        if differing:
            index, *others = differing
            if others:
                named = ", ".join(map(str, others[:5]))
                self._warn(f"samples {named} differ as well: only {index} was looked into; trace the others alone")
            investigation = self._investigation(index)
            found = investigation.findings()
            for warning in investigation.warnings:
                self._warn(warning)
            check = self._self_check(index, investigation.reference_again())
            self._findings = check.applied(found)
            self._static = tuple(map(str, static_report(self._models, self._whole_plan)))
            return
        if self._options.local:
            self._investigation(0).observe()

    def _differs(self, index: int) -> bool:
        rows = final(self._passes[index].comparison.final_rows())
        return bool(rows) and not all(is_clean(row, self._floors[index]) for row in rows)

    def _self_check(self, index: int, again: Fingerprint | None) -> SelfCheck:
        """Look for a cause in the models' own state, before anybody is blamed."""
        done = self._passes[index]
        first = FirstPass(done.random, done.fingerprints, done.drew_random, again)
        check = self_check(self._models, self._whole_plan, self._samples[index], self._options.call, first)
        for warning in (*self._shared.warnings(), *check.warnings):
            self._warn(warning)
        return check

    def _investigation(self, index: int) -> Investigation:
        done, options = self._passes[index], self._for_sample(index)
        made = Investigation(
            self._models, self._whole_plan, self._samples[index], options, done.own_random, done.comparison
        )
        self._investigations[index] = made
        return made

    def _for_sample(self, index: int) -> Options:
        return dataclasses.replace(self._options, floors=self._floors[index])

    def _run_sample(self, index: int, sample: Any) -> tuple[End, End]:
        """Run one sample, each side with random numbers of its own where it draws any.

        Keeping them apart costs a little at every module, so models in eval mode first run without; if they
        draw after all, the pass is done again.
        """
        floors = self._options.floors
        if self._options.measure_noise:
            floors, warning = measured_floors(self._models[REFERENCE], sample, self._options)
            if warning is not None:
                self._warn(warning)
        self._floors.append(floors)
        training = any(model.in_training for model in self._models)
        own_random = training or any(listener is not None for listener in self._options.listeners)
        done = self._execute(index, sample, own_random=own_random)
        if done.drew_random and not own_random and all(end.error is None for end in done.ends):
            self._warn("random numbers are drawn although both models are in eval mode; each side drew the same ones")
            self._passes.pop()
            done = self._execute(index, sample, own_random=True)
        for name, side in zip(NAMES, done.sides, strict=True):
            if side.silent:
                first = side.silent[0] or "<root>"
                self._warn(
                    f"{len(side.silent)} modules of the {name} take no hooks ({first} …): they were not compared"
                )
        return done.ends

    def _execute(self, index: int, sample: Any, *, own_random: bool) -> Pass:
        done = Pass(
            self._models,
            self.plan,
            sample,
            self._for_sample(index),
            index=index,
            own_random=own_random,
            progress=self._progress,
        )
        self._passes.append(done)
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

    def _raise_for(self, end: End, model: Model, sample: int) -> None:
        assert end.error is not None
        if isinstance(end.error, KeyboardInterrupt):
            raise end.error
        where = f"{end.module or '<root>'} ({type(model.modules[end.module]).__name__})"
        which = f" on sample {sample}" if len(self._samples) > 1 else ""
        said = first_line(end.error)
        self._error = (
            f"the {model.name} raised {type(end.error).__name__} in {where}{which}: {said}{_raised_at(end.error)}"
        )
        if model.name == NAMES[CANDIDATE] and self._reference_runs(sample):
            self._findings = [self._raises(end)]
        raise ForwardError(self._error, side=model.name, module=end.module, report=self.report()) from end.error

    def _reference_runs(self, sample: int) -> bool:
        """Return whether the reference takes the inputs on which the candidate raised: only then is that a fault."""
        reference = self._models[REFERENCE]
        try:
            with buffers_kept([reference]):
                reference.entry(self._options.call, copied(self._samples[sample]))()
        except Exception:
            return False
        return True

    def _raises(self, end: End) -> Finding:
        key = self.plan.candidate_keys.get(end.module)
        return Finding(
            rank=1,
            module=key if key is not None else end.module,
            call=max(0, self._passes[-1].calls(CANDIDATE)[end.module] - 1),
            kind="raises",
            summary=f"raises {type(end.error).__name__} in the candidate alone: {first_line(end.error)}",
            confirmed=True,
            evidence=(f"the candidate's module is {end.module or '<root>'}",),
        )

    def report(self) -> ReportData:
        """Return what was found until now."""
        rows = tuple(row for done in self._passes for row in self._explained(done))
        coverage, floors = self._coverage(), self._options.floors
        reference, candidate = (model.describe() for model in self._models)
        return ReportData(
            qtrace=qtrace.__version__,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            environment=environment(),
            reference=reference,
            candidate=candidate,
            inputs=tuple(describe_inputs(self._samples)),
            outcome=self._outcome(rows, coverage),
            coverage=coverage,
            rows=rows,
            arguments=tuple(a for done in self._passes for a in done.comparison.arguments()),
            findings=tuple(self._findings),
            unmatched=tuple(self._unmatched()),
            warnings=tuple(self._warnings),
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

    def _outcome(self, rows: Sequence[Row], coverage: Coverage) -> Outcome:
        if self._error is not None:
            return Outcome.FAULT if self._findings else Outcome.INCONCLUSIVE
        return outcome(
            rows,
            coverage,
            self._findings,
            samples=len(self._samples),
            options=self._options,
            floors=self._floors,
        )

    def _explained(self, done: Pass) -> Iterator[Row]:
        """Yield a pass's rows, with the verdict of those that differ and the errors that modules make themselves."""
        rows = done.comparison.rows()
        investigation = self._investigations.get(done.comparison.sample)
        found = {}
        if investigation is not None:
            found = investigation.verdicts(self._findings)
        elif any(row.verdict in _EXPLAINABLE for row in rows):
            found = verdicts(as_trial(done.comparison, local=False), self._findings)
        for row in rows:
            key = (row.module, row.call, row.output)
            changes: dict[str, Any] = {}
            told = found.get(key)
            if row.verdict is None or (row.verdict in _EXPLAINABLE and told is Verdict.ABSORBED):
                changes["verdict"] = told
            if investigation is not None and key in investigation.local:
                local = investigation.local[key]
                changes["peir_local"] = local.error
                if row.relation is None and local.is_visible:
                    changes["relation"] = local.relation
            yield dataclasses.replace(row, **changes) if changes else row

    def _coverage(self) -> Coverage:
        """Count the reference's calls; the root's, and those that `only` and `skip` leave out, do not count."""
        counted = self.plan.chosen - {""}
        calls = compared = 0
        reasons: Counter[str] = Counter()
        for done in self._passes:
            calls += sum(n for path, n in done.calls(REFERENCE).items() if path in counted)
            compared += done.comparison.compared
            reasons.update(done.comparison.reasons)
            for (path, reason), n in done.unseen(REFERENCE).items():
                if path in counted:
                    reasons[reason] += n
                    calls += n if reason == "in_thread" else 0
        unfinished = calls - compared - sum(reasons.values())
        if unfinished > 0:
            reasons["unfinished"] += unfinished
        return Coverage(calls, compared, dict(sorted(reasons.items())))

    def _unmatched(self) -> Iterator[Unmatched]:
        """Yield the modules with calls that were compared with nothing, and the reference modules without partner."""
        modules = self._models[REFERENCE].modules
        mine = sum((done.calls(REFERENCE) for done in self._passes), Counter())
        theirs = sum((done.calls(CANDIDATE) for done in self._passes), Counter())
        for path in self.plan.alignment.alone:
            if path in self.plan.chosen and mine[path]:
                yield Unmatched("reference", path, type(modules[path]).__name__, mine[path], "no_partner")
        called = {key for path, key in self.plan.candidate_keys.items() if theirs[path]}
        alone = sum((done.comparison.alone_calls for done in self._passes), Counter())
        for (side, path, kind), calls in alone.items():
            reason = "other_place" if side == CANDIDATE or path in called else "partner_not_called"
            yield Unmatched(NAMES[side], path, kind, calls, reason)


@contextlib.contextmanager
def _set_apart(models: Sequence[Model]) -> Iterator[None]:
    """Run without gradients, compiled models eagerly, and leave the caller's random state as it was."""
    random = RandomState(devices_of(models))
    keep_freed_memory()
    # Hooks and rows are many small objects: enough to make the collector walk the whole program again, which takes
    # longer than they did. What lives already is left out of that for the time being.
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


def _raised_at(error: BaseException) -> str:
    """Return where the user's own code raised, as " (file:line)"."""
    inner = [Path(torch.__file__).parent, Path(qtrace.__file__).parent]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(parent in Path(frame.filename).parents for parent in inner):
            return f" ({Path(frame.filename).name}:{frame.lineno})"
    return ""
