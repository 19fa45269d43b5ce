"""Isolation: runs passes with forced boundaries, until each suspect is separated from the others.

The first pass forces the reference's tensors on the candidate at every boundary, so that each call shows its own error.
The accumulated pass may not tell whether the code around a module undoes such an error. Then further passes force only
the boundaries of the children of containers that differ. A container found to differ inside is opened in turn: it is
run again by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from qtrace.diagnosis.outliers import is_noisy, outliers
from qtrace.diagnosis.replay import Replays, is_inside
from qtrace.diagnosis.runner import Runner, as_trial
from qtrace.diagnosis.suspects import (
    Suspect,
    containers_to_open,
    doubtful_arguments,
    error_inside,
    innocents,
    rewritten_inside,
    suspects,
    unaccounted,
    wrong_inside,
    wrongness,
)
from qtrace.diagnosis.trial import Trial, Value, spliced
from qtrace.engine.forcing import Forcing
from qtrace.engine.lockstep import CANDIDATE, REFERENCE
from qtrace.engine.lockstep_pass import Pass
from qtrace.errors import first_line
from qtrace.numerics.relations import DELIBERATE
from qtrace.report.records import Relation

# Deep models nest about this many containers; each pass opens at least one level.
_MOST_PASSES = 6
# The part of an error that is there without the rounding where the rounding is not what makes it.
_THERE = 0.5
# Rounding hardly makes a PEIR of this size in one module.
_MOST_ROUNDING = 0.1

Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Local:
    """The error that one output shows on the reference's arguments (a PEIR), and whether it is beyond rounding.

    `relation` says how it is then related to the reference's output, if that is known. `is_absorbed` says that the
    modules behind it undo it, as was seen without the candidate's rounding.
    """

    error: float | None
    is_visible: bool
    relation: Relation | None = None
    is_absorbed: bool = False

    @property
    def is_undone(self) -> bool:
        """Return whether the output is right in a convention of the candidate's, which the modules behind it undo."""
        return self.is_absorbed or (
            not self.is_visible and self.relation is not None and self.relation.kind in DELIBERATE
        )


class Isolation:
    """Finds the suspects, starting from the pass without forcing.

    `local` holds each output's own error by (module, call, output), where a pass has shown it. `warnings` holds the
    limits of the search that a reader must know.
    """

    def __init__(self, runner: Runner, first: Trial) -> None:
        self.local: dict[Key, Local] = {}
        self.warnings: list[str] = []
        self._runner = runner
        self._first = first
        self._converted: frozenset[str] = frozenset()
        # How often the candidate called each of its modules, by its own paths.
        self._called: Mapping[str, int] = {}
        self._ran = {call.module for call in first.calls if call.side != "candidate"}

    def suspects(self) -> tuple[list[Suspect], bool]:
        """Return the suspects, and whether differing is the rule, so that they only stand out."""
        found, is_noise = self._suspects()
        return [self._in_reference_terms(self._exchanged(suspect)) for suspect in found], is_noise

    def _in_reference_terms(self, suspect: Suspect) -> Suspect:
        """Return the suspect at the reference's module that makes the argument, where the candidate has none like it.

        The code that a port writes out in a container may stand in a module of its own in the reference.
        """
        if suspect.kind != "miscalls" or suspect.callee is None or self._runner.answering(suspect.module) == []:
            return suspect
        caller = suspect.callee.module.rpartition(".")[0]
        while caller and not (caller in self._ran and not self._runner.answering(caller)):
            if self._runner.answering(caller):
                return suspect
            caller = caller.rpartition(".")[0]
        is_inside = (
            caller and caller != suspect.module and (not suspect.module or caller.startswith(f"{suspect.module}."))
        )
        return replace(suspect, module=caller) if is_inside and not suspect.members else suspect

    def _exchanged(self, suspect: Suspect) -> Suspect:
        """Return the suspect at the module that the candidate has replaced by others, where that is what is wrong.

        A container that does not make one of the reference's calls leaves it out, or has modules of another kind in its
        place, as a cell that is called step by step for a whole GRU.
        """
        runner = self._runner
        lone = suspect.callees[0] if suspect.kind == "structure" and suspect.callee is not None else None
        if lone is None or suspect.callee is None or lone not in runner.models[REFERENCE].modules:
            return suspect
        alignment = runner.plan.alignment
        if lone in alignment.fused or lone in alignment.split:
            # It is computed in one with others, so the container leaves nothing out.
            return replace(suspect, kind="miscalls", callees=[suspect.callee.module])
        if runner.answering(lone):
            return suspect
        around = set(runner.answering(suspect.module))
        theirs = [
            path
            for path in self._between(suspect)
            if path.rpartition(".")[0] in around and path and path not in alignment.pairs
        ]
        if not theirs:
            return suspect
        made = next((call for call in suspect.call.children if call.module == lone), suspect.call)
        return replace(
            suspect, module=lone, call=made, callees=[suspect.callee.module], has_children=False, instead=tuple(theirs)
        )

    def _between(self, suspect: Suspect) -> list[str]:
        """Return the candidate's modules first called between the call before a suspect's callee and that callee."""
        both = [call for call in suspect.call.children if call.side is None]
        if suspect.callee not in both:
            return []
        place = both.index(suspect.callee)
        called = list(self._called)
        ends = [both[place - 1].module if place else None, suspect.callee.module]
        places = [
            next((called.index(path) for path in self._runner.answering(end) if path in self._called), None)
            if end is not None
            else -1
            for end in ends
        ]
        first, last = places
        return called[first + 1 : last] if first is not None and last is not None else []

    def _suspects(self) -> tuple[list[Suspect], bool]:
        first, everywhere = self._first, self.everywhere()
        if not everywhere.roots:
            return [], True
        if is_noisy(everywhere):
            return outliers(self._everywhere_in_right_terms(everywhere)), True
        everywhere = self._with_own_arguments(everywhere)
        first = self._first
        rewritten = rewritten_inside(everywhere, {call.module for call in everywhere.calls})
        open_paths = containers_to_open(first)
        doubtful = unaccounted(everywhere, first, open_paths)
        if not rewritten and not doubtful:
            # With all boundaries inside forced, a container that folds a scale in and undoes it has a wrong output.
            innocent = innocents(first)
            found = [one for one in suspects(everywhere, open_paths) if not _is_forced_wrong(one, innocent)]
            return found, False
        replays = Replays(self._runner, doubtful - {""})
        trial, inside = first, set[str]()
        for _ in range(_MOST_PASSES):
            trial = self._in_right_terms(trial, open_paths, replays, inside)
            more = containers_to_open(trial, open_paths) - open_paths
            if not more:
                break
            open_paths = open_paths | more
            inside = replays.covering(more)
        return suspects(trial, open_paths), False

    def absorb(self, others: Mapping[Key, Local]) -> None:
        """Take over what differs without the rounding as well, though the final outputs are right: that is undone.

        How large the rounding alone is cannot be told there.
        """
        for key, other in others.items():
            own = self.local.get(key)
            if own is None or not own.is_visible:
                continue
            if own.error is None or other.error is None:
                is_convention = own.error is other.error
            elif other.is_visible:
                # Much less than the other is the rounding, measured in the candidate's convention.
                is_convention = _THERE * own.error <= other.error <= own.error / _THERE
            else:
                is_convention = other.relation is not None and own.error >= _MOST_ROUNDING
            if is_convention:
                self.local[key] = Local(None, False, other.relation, is_absorbed=True)

    def everywhere(self) -> Trial:
        """Force the reference's tensors at every boundary: each call shows its own error."""
        forced = frozenset(self._runner.plan.reference_keys)
        return self._shown(self._pass(forced, frozenset(), self._runner.run), frozenset())

    def _with_own_arguments(self, everywhere: Trial) -> Trial:
        """Leave the candidate its own arguments where the reference's are what makes it wrong; note these as harmless.

        An argument that differs is evidence only if less is wrong with the reference's in its place.
        """
        open_paths = {call.module for call in everywhere.calls if call.children}
        found = suspects(everywhere, open_paths)
        doubtful = doubtful_arguments(found, self._first) - self._first.harmless
        if not doubtful:
            return everywhere
        before = self._first
        self._first = replace(before, known=before.known | doubtful)
        forced = frozenset(self._runner.plan.reference_keys)
        other = self._pass(forced, frozenset(), self._runner.run)
        if other.roots and wrongness(other, doubtful) <= wrongness(everywhere, doubtful):
            self._runner.harmless = self._first.harmless
            self._runner.doubtful = doubtful
            self._runner.aside = [s for s in found if s.callee is not None and _hands_on(s, doubtful)]
            return self._shown(other, frozenset())
        self._first = before
        return everywhere

    def _everywhere_in_right_terms(self, everywhere: Trial) -> Trial:
        """Force every boundary again, in the candidate's convention inside containers where that leaves less error.

        Quantization folds a factor per channel into a norm, and the weights behind it undo that factor. On the
        reference's values as they are, those weights would show an error of their own.
        """
        forced = frozenset(self._runner.plan.reference_keys)
        found, asked = everywhere, set[str]()
        # A container's arguments show their convention only once the containers around it are right.
        while more := rewritten_inside(found, {call.module for call in found.calls} - asked, self._converted):
            asked |= more
            other = self._pass(forced, self._converted | _children_of(found, more), self._runner.run, is_noisy=True)
            better = {path for path in more if error_inside(other, path) < error_inside(found, path)}
            if not other.roots or not better:
                break
            self._converted |= _children_of(found, better)
            found = other if better == more else self._pass(forced, self._converted, self._runner.run, is_noisy=True)
            self._shown(found, self._converted)
        return found

    def _in_right_terms(self, trial: Trial, open_paths: set[str], replays: Replays, inside: set[str]) -> Trial:
        """Force the boundaries of these containers' children; where `inside` names any, only those run again.

        Where the candidate has rewritten some, the children are forced in the convention that leaves less wrong. A
        rotation or a factor per channel looks the same whether it is a fault or undone by the next module. If the
        next module undoes it, it errs on the reference's values as they are. If not, it errs on the values in the
        candidate's convention. That convention is right only if no output becomes wrong that was right before.
        """
        forced = _children_of(trial, open_paths)

        def shown(converted: frozenset[str]) -> Trial:
            again = self._again(trial, forced, converted, replays, inside) if inside else None
            if again is None:
                again = self._pass(forced, converted, replays.during)
            return self._shown(again, converted)

        # If the whole models run instead, the pass shows more containers; the next round examines those.
        looked_into = {path for path in open_paths if not inside or is_inside(path, inside)}
        found = shown(self._converted)
        asked: set[str] = set()
        while more := rewritten_inside(found, looked_into, self._converted) - asked:
            asked |= more
            other = shown(self._converted | _children_of(found, more))
            better = {path for path in more if wrong_inside(other, path) < wrong_inside(found, path)}
            if better:
                self._converted |= _children_of(found, better)
                found = other if better == more else shown(self._converted)
        return found

    def _again(
        self, trial: Trial, forced: frozenset[str], converted: frozenset[str], replays: Replays, inside: Collection[str]
    ) -> Trial | None:
        """Return the trial with these containers as they are when run by themselves; None if one of them cannot be."""
        for path in sorted(inside):
            done = replays.run(path, self._forcing(forced, converted))
            alone = None if done is None else self._trial(done)
            if alone is None or len(alone.roots) != 1:
                return None
            trial = spliced(trial, alone)
        return trial

    def _pass(
        self,
        forced: frozenset[str],
        converted: frozenset[str],
        run: Callable[[Forcing], Pass],
        *,
        is_noisy: bool = False,
    ) -> Trial:
        forcing = replace(self._forcing(forced, converted), is_noisy=is_noisy)
        done = run(forcing)
        if done.raised() and self._first_broke_off():
            # The caller may be the module that raises, on an output of another size.
            done = run(replace(forcing, resizes_outputs=True))
        if done.raised():
            # The candidate's callee may not accept an argument that the reference's callee accepts.
            done = run(replace(forcing, resizes=False, unwraps=False))
        if done.raised():
            raised = next(end.error for end in done.ends if end.error is not None)
            said = f"{type(raised).__name__}: {first_line(raised)}"
            why = f"the candidate does not take the reference's tensors ({said})"
            self.warnings.append(f"a look inside failed: {why}")
            return Trial(())
        if done.calls(CANDIDATE) and forced >= frozenset(self._runner.plan.reference_keys):
            self._called = done.calls(CANDIDATE)
        return self._trial(done)

    def _trial(self, done: Pass) -> Trial:
        return as_trial(done.comparison, local=True, known=self._first.harmless, kept=self._runner.kept)

    def _first_broke_off(self) -> bool:
        return self._runner.before is not None and math.isinf(self._runner.before)

    def _forcing(self, forced: frozenset[str], converted: frozenset[str]) -> Forcing:
        # No module receives the root's output.
        exits = forced - {""}
        harmless = self._first.harmless
        return Forcing(entries=forced, exits=exits, converted=converted, harmless=harmless, explains=True)

    def _shown(self, trial: Trial, converted: frozenset[str]) -> Trial:
        """Note the own errors that a trial shows."""
        shown = _local_errors(trial)
        # An error measured in the candidate's own convention is truer than one in the reference's.
        self.local = self.local | shown if converted else shown | self.local
        return trial


def _local_errors(trial: Trial) -> dict[Key, Local]:
    """Return the own error of each output whose call received the reference's arguments."""
    return {
        (call.module, call.call, value.name): Local(
            value.related if _is_undone(value) else value.error, not value.agrees and not value.is_gain, value.relation
        )
        for call in trial.calls
        if call.side is None and trial.enters_clean(call)
        for value in call.outputs
    }


def _is_undone(value: Value) -> bool:
    """Return whether the own error is the rest under the relation: of a factor, or in a convention that holds."""
    return value.is_gain or (value.agrees and value.deliberate and value.related is not None)


def _hands_on(suspect: Suspect, arguments: Collection[tuple[str, str]]) -> bool:
    """Return whether a suspect passes one of these arguments, by (class of the callee, name), to its callee."""
    name = suspect.value.name if suspect.value is not None else suspect.argument
    return suspect.callee is not None and (suspect.callee.type, name) in arguments


def _is_forced_wrong(suspect: Suspect, innocent: Collection[tuple[str, int]]) -> bool:
    is_container = suspect.has_children and suspect.kind == "introduces"
    return is_container and (suspect.module, suspect.call.call) in innocent


def _children_of(trial: Trial, open_paths: set[str]) -> frozenset[str]:
    return frozenset(
        child.module
        for call in trial.calls
        if call.module in open_paths
        for child in call.children
        if child.side is None
    )
