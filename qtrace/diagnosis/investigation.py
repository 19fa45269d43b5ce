"""Turns a difference into a named fault: isolates the suspects, heals them, and names those that matter.

To heal a suspect is to pass the candidate the reference's tensors at the boundaries of that suspect only. How far the
final error falls then says whether it was the cause.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from qtrace.diagnosis.confirmation import Graft, confirm, outliers_that_matter
from qtrace.diagnosis.isolation import Isolation, Key, Local
from qtrace.diagnosis.naming import Naming
from qtrace.diagnosis.outliers import coarse_dtypes
from qtrace.diagnosis.quantization.misfits import Misfits
from qtrace.diagnosis.quantization.observation import QuantizerEvidence
from qtrace.diagnosis.quantization.unbalanced_scales import unbalanced
from qtrace.diagnosis.quantization.unrounding import without_rounding
from qtrace.diagnosis.quantization.weighing import weighed
from qtrace.diagnosis.runner import Runner, as_trial, kept_in
from qtrace.diagnosis.suspects import Suspect, repeats, role, vanished
from qtrace.diagnosis.trial import verdicts
from qtrace.engine.comparison import Comparison
from qtrace.engine.lockstep_pass import Fingerprint, Options
from qtrace.engine.model import Model
from qtrace.engine.plan import Plan
from qtrace.report.records import Finding, Verdict

_MOST_SUSPECTS = 12
# Errors of so many modules tell what rounding makes, if they are no larger than this (a PEIR) in the median; an error
# that is so many times as large is hardly another one.
_FEWEST_SOUND = 3
_MOST_ROUNDING = 0.25
_NO_WORSE = 1.5
# A final error so many times smaller than that with the rounding is lost in it.
_LITTLE = 0.05
# So many modules that are wrong in one way are no accidents.
_SYSTEMATIC = 3
# From this PEIR on a difference is no rounding, at any depth.
_VISIBLE = 1e-3


class Investigation:
    """Finds the modules at fault on one sample; `first` is the result of the pass without forcing.

    `before` is the final error of a pass that did not run to its end.
    """

    def __init__(
        self,
        models: tuple[Model, Model],
        plan: Plan,
        sample: Any,
        options: Options,
        own_random: bool,
        first: Comparison,
        *,
        before: float | None = None,
    ) -> None:
        self._runner = Runner(models, plan, sample, options, own_random)
        self._first = as_trial(first, local=False)
        self._isolation = Isolation(self._runner, self._first)
        self._warnings: list[str] = []
        self._quantized = QuantizerEvidence(self._runner)
        # Whether the rounding of the candidate may be taken out first.
        self._unrounds = True
        self._runner.kept = kept_in(first)
        self._runner.read = self._first.read_outputs()
        self._runner.before = self._first.final_error(self._runner.read) if before is None else before
        self._runner.computes_in(coarse_dtypes(self._first))

    @property
    def local(self) -> Mapping[Key, Local]:
        """Return each output's own error by (module, call, output), where a pass has shown it."""
        return self._isolation.local

    @property
    def warnings(self) -> list[str]:
        """Return the limits of the search that a reader must know."""
        return self._isolation.warnings + self._warnings

    def findings(self) -> list[Finding]:
        """Return the named faults, best first."""
        found, is_noise = self._isolation.suspects()
        if not self._unrounds:
            return self._named(found, is_noise)
        self._quantized.weights = weighed(self._runner)
        other = without_rounding(self._runner, self._first, self._quantized.weights)
        if other is None:
            named = self._named(found, is_noise)
            differing = self._differing() if not named else []
            return self._named(differing, False) if differing else named
        if other.is_right:
            self._quantized.watch = other.watch
            with other.applied() as (models, first):
                inner = self._of(models, first)
                inner._isolation.suspects()
                self._isolation.absorb(inner.local)
            misfits = Misfits(self._first, self._quantized, found, is_noise=is_noise, is_undone=self._is_absorbed)
            found = misfits.chosen()
            watched = [one for one in misfits.watched(found) if not self._is_final(one)]
            return self._named([*found, *watched], is_noise, watched) if found or watched else []
        if self._quantized.weights.is_partial:
            # What could not be unrounded would stand out against all that was.
            return self._named(found, is_noise)
        with other.applied() as (models, first):
            inner = self._of(models, first)
            named = inner.findings()
            self._warnings += inner.warnings
            left = inner._runner.before
        return self._beyond_rounding(named, left)

    def _beyond_rounding(self, named: list[Finding], left: float | None) -> list[Finding]:
        """Return the findings without those at weights that harm no more than the rounding of the others does.

        Not every scheme leaves a weight of which it can be told that it is the reference's, rounded. `left` is the
        final error without the rounding.
        """
        before = self._runner.before
        is_little = left is not None and before is not None and left <= _LITTLE * before
        weights = self._quantized.weights
        own: dict[str, float] = {}
        for (module, _, _), local in self.local.items():
            if module in weights.weighed and local.error is not None:
                own[module] = max(own.get(module, 0.0), local.error)
        others = [error for module, error in own.items() if weights.is_sound(module) and error > 0]
        is_known = len(others) >= _FEWEST_SOUND and median(others) <= _MOST_ROUNDING
        usual = _NO_WORSE * median(others) if is_known else -math.inf

        def is_harmless(finding: Finding) -> bool:
            modules = (finding.module, *finding.members)
            is_weight = finding.kind == "introduces" and all(weights.is_only_weight(module) for module in modules)
            return is_weight and (is_little or all(own.get(module, math.inf) <= usual for module in modules))

        kept = [finding for finding in named if not is_harmless(finding)]
        return [replace(finding, rank=rank) for rank, finding in enumerate(kept, 1)]

    def _differing(self) -> list[Suspect]:
        """Return the modules whose weights are no rounding of the reference's, where none stood out by its error."""
        wrong = set(self._quantized.weights.faulty())
        calls = {call.module: call for call in reversed(self._first.calls) if call.side is None}
        found = []
        for path in calls.keys() & wrong:
            value = next((value for value in calls[path].outputs if not value.agrees), None)
            if value is not None:
                found.append(Suspect("introduces", path, calls[path], value=value))
        return sorted(found, key=lambda suspect: suspect.order)

    def _of(self, models: tuple[Model, Model], first: Comparison) -> Investigation:
        """Return the investigation of these models, which are the same ones without the candidate's rounding."""
        runner = self._runner
        inner = Investigation(models, runner.plan, runner.sample, runner.options, runner.own_random, first)
        inner._unrounds = False
        inner._runner.computes_without_codes()
        inner._quantized.weights = self._quantized.weights
        return inner

    def _is_absorbed(self, one: Suspect) -> bool:
        """Return whether what a suspect shows is a convention, as was seen without the rounding."""
        name = one.value.name if one.value is not None else ""
        local = self.local.get((one.module, one.call.call, name))
        return one.kind == "introduces" and local is not None and local.is_absorbed

    def _is_final(self, one: Suspect) -> bool:
        """Return whether a suspect makes a final output itself: to heal it proves nothing of what is wrong before."""
        finals = {value.key for root in self._first.roots if not root.module for value in root.outputs}
        return one.value is not None and one.value.key in finals

    def _named(self, found: list[Suspect], is_noise: bool, hinted: Sequence[Suspect] = ()) -> list[Finding]:
        """Return the findings for suspects; those `hinted` at do not stand out by their errors."""
        trial, runner = self._first, self._runner
        ran = {call.module for call in trial.calls}
        quantized = self._quantized
        naming = Naming(runner, ran.__contains__, quantized)
        if found and not is_noise:
            # Where only a few modules quantize, none is at fault for the rounding that it was asked to do.
            found = [suspect for suspect in found if not quantized.explains(suspect)]
            if not found:
                return []
        if not found and not is_noise and not runner.is_coarse:
            found = vanished(trial, _VISIBLE)
            if found and not runner.is_healed(runner.final_after(found)):
                return []
        if not found:
            return []
        lacking = unbalanced(runner, trial, quantized.weights)
        if lacking and runner.is_healed(runner.final_after(lacking)):
            found, is_noise = lacking, False
        if is_noise:
            grafts = outliers_that_matter(runner, self._worst(found), hinted)
        else:
            found = repeats(found, trial, lambda suspect: naming.static(suspect.module))
            found = [self._with_silent_members(suspect, found, naming) for suspect in found]
            repeated = {call.module for call in trial.calls if call.call}
            grafts = confirm(runner, self._worst(found), repeated)
        grafts = self._systematic(grafts, found, naming)
        named = [naming.finding(rank, graft) for rank, graft in enumerate(grafts, 1)]
        first = {(finding.module, finding.kind, finding.argument): finding for finding in reversed(named)}
        kept = [finding for finding in named if first[finding.module, finding.kind, finding.argument] is finding]
        return [replace(finding, rank=rank) for rank, finding in enumerate(kept, 1)]

    def observe(self) -> None:
        """Measure each module's own error, and name no fault: the final outputs agree."""
        self._isolation.everywhere()

    def reference_again(self) -> Fingerprint | None:
        """Return the reference's output in a further pass that hooked hardly any module; None without such a pass."""
        return self._runner.reference_again

    def verdicts(self, findings: Sequence[Finding]) -> dict[Key, Verdict]:
        """Return the verdict of each output that differs, by (module, call, output)."""
        found = verdicts(self._first, findings, {key: local.is_visible for key, local in self.local.items()})
        undone = {key for key, local in self.local.items() if local.is_undone}
        return {key: Verdict.ABSORBED if key in undone else verdict for key, verdict in found.items()}

    def _worst(self, found: list[Suspect]) -> list[Suspect]:
        """Return as many suspects as can be tried, those with the largest errors of their own."""
        if len(found) <= _MOST_SUSPECTS:
            return found
        left = len(found) - _MOST_SUSPECTS
        self._warnings.append(f"{left} more modules show an error of their own than could be tried one by one")
        return sorted(found, key=_own_error, reverse=True)[:_MOST_SUSPECTS]

    def _systematic(self, grafts: Sequence[Graft], found: Sequence[Suspect], naming: Naming) -> list[Graft]:
        """Return the grafts with those of one systematic fault as one: modules of a class that are wrong in one way.

        It is one from three modules on, whatever their places. Those that show the same, but were not tried or did not
        matter by themselves behind the others, belong to it.
        """
        groups: dict[Hashable, list[Graft]] = {}
        for place, graft in enumerate(grafts):
            groups.setdefault(naming.way(graft.suspect) or place, []).append(graft)
        kept: list[Graft] = []
        for way, group in groups.items():
            first = group[0].suspect
            modules = {module for graft in group for module in graft.suspect.modules}
            alike = [one for one in found if naming.way(one) == way]
            modules |= {module for one in alike for module in one.modules}
            modules |= {path for path in naming.faulty_weights() if naming.way(replace(first, module=path)) == way}
            if isinstance(way, int) or len(modules) == len(first.modules) or len(modules) < _SYSTEMATIC:
                kept += group
                continue
            whole = replace(first, members=[path for path in self._runner.plan.reference_keys if path in modules])
            whole.members.remove(first.module)
            after = self._runner.final_after([whole])
            is_cause = any(graft.is_cause for graft in group)
            kept.append(Graft(whole, self._runner.before, after, is_cause, sum(graft.gain for graft in group)))
        return kept

    def _with_silent_members(self, suspect: Suspect, found: Sequence[Suspect], naming: Naming) -> Suspect:
        """Return the suspect with the modules of other layers whose data differs in the same way.

        Their error may be too small to show behind that of the others.
        """
        static = naming.static(suspect.module) if suspect.kind == "introduces" else ()
        # Weights with the same sentence may still differ each in its own way, so only attributes count.
        if static and static == naming.attributes(suspect.module):
            named = {module for other in found for module in other.modules}
            same_role = (
                p for p in self._runner.plan.reference_keys if role(p) == role(suspect.module) and p not in named
            )
            suspect.members.extend(path for path in same_role if naming.static(path) == static)
        return suspect


def _own_error(suspect: Suspect) -> float:
    error = suspect.value.error if suspect.value is not None else None
    return float("inf") if error is None else error
