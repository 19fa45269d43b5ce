"""One run of a pair of models over samples of inputs, from plan to report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import platform
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qtrace
from qtrace.errors import ForwardError, Interrupted
from qtrace.investigation import Investigation
from qtrace.lockstep import CANDIDATE, REFERENCE
from qtrace.lockstep.pair import spec_of
from qtrace.model import Model
from qtrace.passes import Options, Pass, copied
from qtrace.plan import Plan, make_plan
from qtrace.probe import End, RandomState
from qtrace.records import Coverage, Finding, Outcome, Relation, ReportData, Row, Status, Unmatched, Verdict
from qtrace.relate import FILL
from qtrace.stats import plain
from qtrace.tolerance import rounding_tolerance
from qtrace.tree import leaves

NAMES = ("reference", "candidate")
_PREVIEW = 8
# Rounding does not add up to any of these.
_NO_DRIFT = (Verdict.LAYOUT, Verdict.MASK, Verdict.NON_FINITE)
# A final output with one of these was not compared, and does not agree.
_UNTOLD = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH, Status.REFERENCE_ONLY)
_AGREEING = (Verdict.EQUAL, Verdict.LAYOUT, Verdict.MASK)


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
        self._local: dict[tuple[int, str, int, str], float | None] = {}
        self._error: str | None = None
        self._done = 0
        self._warnings = [warning for model in self._models for warning in model.warnings()]
        if reference is candidate:
            self._warn("reference and candidate are one object: what was changed in place changed both")

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
        """Find who is to blame for the first sample whose final outputs differ."""
        coverage = self._coverage()
        too_little = coverage.reference_calls and not coverage.fraction >= self._options.min_coverage
        if self._options.local is False or too_little:
            return
        for done, sample in zip(self._passes, self._samples, strict=True):
            rows = [row for row in done.comparison.final_rows() if row.status is not Status.CANDIDATE_ONLY]
            if rows and not all(self._is_clean(row) for row in rows):
                investigation = Investigation(
                    self._models, make_plan(*self._models), sample, self._options, done.own_random
                )
                self._findings = investigation.findings(done.comparison)
                self._local = {(done.comparison.sample, *key): error for key, error in investigation.local.items()}
                return

    def _run_sample(self, index: int, sample: Any) -> tuple[End, End]:
        """Run one sample, each side with random numbers of its own where it draws any.

        Keeping them apart costs a little at every module, so models in eval mode first run without; if they
        draw after all, the pass is done again.
        """
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
            self._options,
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
        said = _first_line(end.error)
        self._error = (
            f"the {model.name} raised {type(end.error).__name__} in {where}{which}: {said}{_raised_at(end.error)}"
        )
        if model.name == NAMES[CANDIDATE] and self._reference_runs(sample):
            self._findings = [self._raises(end)]
        raise ForwardError(self._error, side=model.name, module=end.module, report=self.report()) from end.error

    def _reference_runs(self, sample: int) -> bool:
        """Return whether the reference takes the inputs on which the candidate raised: only then is that a fault."""
        given = copied(self._samples[sample])
        call = self._options.call
        root = self._models[REFERENCE].root
        try:
            (root if call == "forward" else getattr(root, call))(*given.args, **given.kwargs)
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
            summary=f"raises {type(end.error).__name__} in the candidate alone: {_first_line(end.error)}",
            confirmed=True,
            evidence=(f"the candidate's module is {end.module or '<root>'}",),
        )

    def report(self) -> ReportData:
        """Return what was found until now."""
        rows = tuple(self._with_local(row) for done in self._passes for row in done.comparison.rows())
        coverage = self._coverage()
        reference, candidate = (model.describe() for model in self._models)
        return ReportData(
            qtrace=qtrace.__version__,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            environment=environment(),
            reference=reference,
            candidate=candidate,
            inputs=tuple(_describe_inputs(self._samples)),
            outcome=self._outcome(rows, coverage),
            coverage=coverage,
            rows=rows,
            arguments=tuple(a for done in self._passes for a in done.comparison.arguments()),
            findings=tuple(self._findings),
            unmatched=tuple(self._unmatched()),
            warnings=tuple(self._warnings),
            settings={
                "only": list(self._options.only),
                "skip": list(self._options.skip),
                "tolerance": self._options.tolerance if self._options.tolerance is not None else "auto",
                "noise_floor": self._options.noise_floor or "auto",
                "call": self._options.call,
                "samples": len(self._samples),
            },
            error=self._error,
        )

    def _outcome(self, rows: Sequence[Row], coverage: Coverage) -> Outcome:
        """Judge at the root's outputs and by the findings; too little compared says nothing.

        Agreeing up to the rounding of the reference's dtype is clean. Beyond that it is a fault where
        somebody is to blame, or where it is more than the coarser dtype's rounding explains and nobody looked; else
        it is drift.
        """
        # An output that the candidate gives beside the reference's is no difference; a missing or odd one is.
        root = [row for row in rows if row.module == "" and row.status is not Status.CANDIDATE_ONLY]
        if self._error is not None:
            return Outcome.FAULT if self._findings else Outcome.INCONCLUSIVE
        told = {row.sample for row in root if row.status not in _UNTOLD}
        if len(told) < len(self._samples) and not any(row.status in _UNTOLD for row in root):
            return Outcome.INCONCLUSIVE
        if coverage.reference_calls and not coverage.fraction >= self._options.min_coverage:
            return Outcome.INCONCLUSIVE
        if all(self._is_clean(row) for row in root):
            return Outcome.CLEAN
        if self._findings:
            return Outcome.FAULT
        if self._options.local is False and not all(row.verdict in _AGREEING for row in root):
            return Outcome.FAULT
        if any(row.status in _UNTOLD or row.verdict in _NO_DRIFT for row in root):
            return Outcome.FAULT
        return Outcome.DRIFT

    def _is_clean(self, row: Row) -> bool:
        return _is_clean(row, self._options.tolerance, self._options.noise_floor)

    def _with_local(self, row: Row) -> Row:
        key = (row.sample, row.module, row.call, row.output)
        return dataclasses.replace(row, peir_local=self._local[key]) if key in self._local else row

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


def _is_clean(row: Row, tolerance: float | None, noise_floor: float) -> bool:
    """Return whether a final output agrees as closely as the reference's own dtype lets anybody agree with it."""
    if row.verdict not in _AGREEING:
        return False
    if row.relation is not None and row.relation.kind == "layout":
        # Inside, a parent undoes it; whoever calls this model gets it as it is. Axes of size 1 broadcast away.
        return not {"permute", "reshape"} & row.relation.parameters.keys()
    if row.relation is not None and row.relation.kind == "mask" and not _both_fills(row.relation):
        return False
    dtype = getattr(torch, row.reference.dtype or "", None) if row.reference is not None else None
    if (
        tolerance is not None
        or row.peir is None
        or dtype is None
        or not dtype.is_floating_point
        or row.verdict is Verdict.MASK
    ):
        return True
    return row.peir <= max(rounding_tolerance((dtype,), row.order), noise_floor)


def _both_fills(relation: Relation) -> bool:
    return all(fill is None or fill <= FILL for fill in relation.parameters.values())


@contextlib.contextmanager
def _set_apart(models: Sequence[Model]) -> Iterator[None]:
    """Run without gradients, compiled models eagerly, and leave the caller's random state as it was."""
    random = RandomState(tuple({kind for model in models for kind in model.devices}))
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


def environment() -> dict[str, Any]:
    """Return what a number may depend on: versions, platform, threads."""
    versions = {}
    for name in ("torch", "transformers", "numpy", "tico", "torchao"):
        if name in sys.modules:
            version = getattr(sys.modules[name], "__version__", None)
            versions[name] = str(version) if version is not None else metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _describe_inputs(samples: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for index, sample in enumerate(samples):
        named = {**{str(i): value for i, value in enumerate(sample.args)}, **sample.kwargs}
        for name, leaf in leaves(named):
            entry = {"sample": index, "name": name, "spec": spec_of(leaf, values=True)}
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                entry["values"] = _preview(leaf)
            yield entry


def _preview(tensor: torch.Tensor) -> str:
    first = plain(tensor.detach()).flatten()[:_PREVIEW].cpu()
    values = first.double() if first.is_floating_point() else first
    return np.array2string(values.numpy(), precision=4, separator=", ").replace("\n", "")


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _raised_at(error: BaseException) -> str:
    """Return where the user's own code raised, as " (file:line)"."""
    inner = [Path(torch.__file__).parent, Path(__file__).parent]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(parent in Path(frame.filename).parents for parent in inner):
            return f" ({Path(frame.filename).name}:{frame.lineno})"
    return ""
