"""From "it differs" to a named fault: passes with forced boundaries, until each suspect stands alone, then grafts.

The first pass showed that the final outputs differ, and which containers differ on clean arguments. The second hands
the candidate the reference's tensors at every boundary, so that each call shows the error that it makes itself. Where
somebody shows one of whom the first pass cannot tell whether the code around undoes it, further passes force the
boundaries of the children of those containers alone that differ; what is found to differ inside is opened in turn.
At last the suspects are healed: the candidate is handed the reference's tensors at just their boundaries, and how
far the final error falls says whether they were the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qtrace.diagnose import (
    Suspect,
    Trial,
    is_accounted,
    is_noisy,
    opened,
    outliers,
    repeats,
    rewritten_inside,
    role,
    suspects,
    vanished,
    verdicts,
    wrong_inside,
)
from qtrace.errors import first_line
from qtrace.investigation.confirmation import confirmed, relieving
from qtrace.investigation.naming import Naming
from qtrace.investigation.runner import Runner
from qtrace.investigation.trials import as_trial
from qtrace.lockstep import Comparison
from qtrace.lockstep.forcing import Forcing
from qtrace.passes import Options
from qtrace.passes.fingerprint import Fingerprint
from qtrace.passes.model import Model
from qtrace.passes.plan import Plan
from qtrace.records import Finding, Relation, Verdict

# Deep models nest about this many containers; each pass opens at least one level.
_MOST_PASSES = 6
_MOST_SUSPECTS = 12
# A difference that is no rounding at any depth.
_VISIBLE = 1e-3

Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Local:
    """The error that one output shows on the reference's arguments (a PEIR), and whether it is beyond rounding.

    `relation` says how it is related to the reference's then, if that is known.
    """

    error: float | None
    is_visible: bool
    relation: Relation | None = None


class Investigation:
    """Finds who is to blame on one sample.

    `local` holds each output's own error by (module, call, output), where a pass has shown it; `warnings` what a reader
    must know of the search.
    """

    def __init__(
        self, models: tuple[Model, Model], plan: Plan, sample: Any, options: Options, own_random: bool
    ) -> None:
        self.local: dict[Key, Local] = {}
        self.warnings: list[str] = []
        self._plan = plan
        self._runner = Runner(models, plan, sample, options, own_random)
        self._first = Trial(())
        self._converted: frozenset[str] = frozenset()

    def findings(self, first: Comparison) -> list[Finding]:
        """Return the named faults, best first; `first` is what the pass without forcing showed."""
        trial = self._first = as_trial(first, local=False)
        runner = self._runner
        runner.before = trial.final_error
        ran = {call.module for call in trial.calls}
        naming = Naming(runner, ran.__contains__)
        found, is_noise = self._isolated(trial)
        if not found and not is_noise and not runner.is_coarse:
            found = vanished(trial, _VISIBLE)
            if found and not runner.is_healed(runner.final_after(found)):
                return []
        if not found:
            return []
        if is_noise:
            grafts = relieving(runner, self._worst(found))
        else:
            found = repeats(found, trial, lambda suspect: naming.static(suspect.module))
            found = [self._with_silent_members(suspect, found, naming) for suspect in found]
            grafts = confirmed(runner, self._worst(found))
        return [naming.finding(rank, graft) for rank, graft in enumerate(grafts, 1)]

    def observe(self, first: Comparison) -> None:
        """Measure each module's own error, and blame nobody: the final outputs agree."""
        self._first = as_trial(first, local=False)
        self._everywhere()

    def reference_again(self) -> Fingerprint | None:
        """Return what the reference returned once more, in a pass that hooked hardly any module; None without one."""
        return self._runner.reference_again

    def verdicts(self, findings: Sequence[Finding]) -> dict[Key, Verdict]:
        """Return what each output that differs means, by (module, call, output)."""
        return verdicts(self._first, findings, {key: local.is_visible for key, local in self.local.items()})

    def _isolated(self, first: Trial) -> tuple[list[Suspect], bool]:
        """Return the suspects, and whether differing is the rule, so that they only stand out."""
        trial = self._everywhere()
        if not trial.roots:
            return [], True
        rewritten = bool(rewritten_inside(trial, {call.module for call in trial.calls}))
        if is_noisy(trial):
            return outliers(trial), True
        open_paths = opened(first)
        if not rewritten and is_accounted(trial, first, open_paths):
            return suspects(trial, open_paths), False
        trial = first
        for _ in range(_MOST_PASSES):
            forced = _children_of(trial, open_paths)
            trial = self._in_right_terms(forced, open_paths)
            more = opened(trial, open_paths) - open_paths
            if not more:
                break
            open_paths = open_paths | more
        return suspects(trial, open_paths), False

    def _in_right_terms(self, forced: frozenset[str], open_paths: set[str]) -> Trial:
        """Force these boundaries; where the candidate has rewritten some, in the convention that leaves less wrong.

        A rotation or a factor per channel looks the same whether it is a fault or undone by the next module. Handed
        the reference's values as they are, that module goes wrong where it undoes it; handed them in the candidate's
        convention, where it does not. The latter is right only if nothing comes out wrong that was right before.
        """
        trial = self._trial(forced, self._converted)
        asked: set[str] = set()
        while more := rewritten_inside(trial, open_paths, self._converted) - asked:
            asked |= more
            other = self._trial(forced, self._converted | _children_of(trial, more))
            better = {path for path in more if wrong_inside(other, path) < wrong_inside(trial, path)}
            if better:
                self._converted |= _children_of(trial, better)
                trial = other if better == more else self._trial(forced, self._converted)
        return trial

    def _worst(self, found: list[Suspect]) -> list[Suspect]:
        """Return as many suspects as can be tried, those with the largest errors of their own."""
        if len(found) <= _MOST_SUSPECTS:
            return found
        left = len(found) - _MOST_SUSPECTS
        self.warnings.append(f"{left} more modules show an error of their own than could be tried one by one")
        return sorted(found, key=_own_error, reverse=True)[:_MOST_SUSPECTS]

    def _with_silent_members(self, suspect: Suspect, found: Sequence[Suspect], naming: Naming) -> Suspect:
        """Return the suspect with the modules of other layers whose data differs in the same way.

        What is wrong there as well may be too little to be seen behind the others.
        """
        static = naming.static(suspect.module) if suspect.kind == "introduces" else ()
        # Of weights that are said to differ alike, each may differ in its own way.
        if static and static == naming.attributes(suspect.module):
            named = {module for other in found for module in other.modules}
            same_role = (p for p in self._plan.reference_keys if role(p) == role(suspect.module) and p not in named)
            suspect.members.extend(path for path in same_role if naming.static(path) == static)
        return suspect

    def _everywhere(self) -> Trial:
        """Hand over the reference's tensors at every boundary: each call shows the error that it makes itself."""
        return self._trial(frozenset(self._plan.reference_keys))

    def _trial(self, forced: frozenset[str], converted: frozenset[str] = frozenset()) -> Trial:
        harmless = self._first.harmless
        # What the root returns goes nowhere.
        exits = forced - {""}
        forcing = Forcing(entries=forced, exits=exits, converted=converted, harmless=harmless, explains=True)
        done = self._runner.run(forcing)
        if done.raised():
            # What the callee of the reference takes, that of the candidate may not.
            done = self._runner.run(replace(forcing, resizes=False))
        if done.raised():
            raised = next(end.error for end in done.ends if end.error is not None)
            said = f"{type(raised).__name__}: {first_line(raised)}"
            why = f"the candidate does not take the reference's tensors ({said})"
            self.warnings.append(f"a look inside failed: {why}")
            return Trial(())
        trial = as_trial(done.comparison, local=True, known=harmless)
        shown = _local_errors(trial)
        # In the candidate's own convention an error shows more truly than in the reference's.
        self.local = self.local | shown if converted else shown | self.local
        return trial


def _local_errors(trial: Trial) -> dict[Key, Local]:
    """Return the own error of each output whose call went in with the reference's arguments."""
    return {
        (call.module, call.call, value.name): Local(
            value.related if value.is_gain else value.error, not value.agrees and not value.is_gain, value.relation
        )
        for call in trial.calls
        if call.side is None and trial.enters_clean(call)
        for value in call.outputs
    }


def _children_of(trial: Trial, open_paths: set[str]) -> frozenset[str]:
    return frozenset(
        child.module
        for call in trial.calls
        if call.module in open_paths
        for child in call.children
        if child.side is None
    )


def _own_error(suspect: Suspect) -> float:
    error = suspect.value.error if suspect.value is not None else None
    return float("inf") if error is None else error
