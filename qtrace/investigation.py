"""From "it differs" to a named fault: passes with forced boundaries, until each suspect stands alone, then a graft.

The first pass showed that the final outputs differ, and which containers differ on clean arguments. Each
further pass forces the boundaries of the children of those containers; what is found to differ inside is opened
in turn. When nothing new comes up, the suspects are healed: the candidate is handed the reference's tensors at
just their boundaries, and how far the final error falls says whether they were the cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtrace.diagnose import CallRecord, Suspect, Trial, Value, is_noisy, opened, outliers, suspects, vanished
from qtrace.diagnose.words import evidence_for, summary
from qtrace.lockstep import Comparison
from qtrace.lockstep.comparison import Met
from qtrace.lockstep.forcing import IN, OUT, Forcing
from qtrace.model import Model
from qtrace.passes import Options, Pass
from qtrace.plan import Plan
from qtrace.probe import Site
from qtrace.records import Finding
from qtrace.static import static_differences
from qtrace.tolerance import rounding_tolerance

# Deep models nest about this many containers; each pass opens at least one level.
_MOST_PASSES = 6
_MOST_SUSPECTS = 12
# A graft that takes the final error down by this factor has found the cause.
_HEALED = 0.1
# A difference that is no rounding at any depth.
_VISIBLE = 1e-3
# Leaving a suspect unhealed must make the final error this many times larger, or it is none.
_AS_GOOD = 3.0
# Among many small errors, one that matters takes the final error down visibly when it is healed.
_RELIEVED = 0.9
# A local error comes from few roundings, whatever the depth.
_LOCAL_DEPTH = 15


class Investigation:
    """Finds who is to blame on one sample; `local` holds each row's own error, where a pass has shown it."""

    def __init__(
        self, models: tuple[Model, Model], plan: Plan, sample: Any, options: Options, own_random: bool
    ) -> None:
        self.local: dict[tuple[str, int, str], float | None] = {}
        self._models = models
        self._plan = plan
        self._sample = sample
        self._own_random = own_random
        dtypes = [{p.dtype for p in model.root.parameters()} for model in models]
        self._is_cast = dtypes[0] != dtypes[1]
        self._floor = rounding_tolerance(sorted(dtypes[0] | dtypes[1], key=str), len(plan.reference_keys))
        self._options = replace(options, only=(), skip=(), listeners=(None, None), progress=None)

    def findings(self, first: Comparison) -> list[Finding]:
        """Return the named faults, best first; `first` is what the pass without forcing showed."""
        trial = as_trial(first, local=False)
        before = trial.final_error
        found, noisy = self._isolated(trial)
        if not found and not noisy and not self._is_cast:
            found = vanished(trial, _VISIBLE)
            if found and not self._is_healed(self._final_after(found), before):
                return []
        if not found:
            return []
        return self._confirmed(found[:_MOST_SUSPECTS], before, noisy)

    def _isolated(self, trial: Trial) -> tuple[list[Suspect], bool]:
        open_paths = opened(trial)
        for _ in range(_MOST_PASSES):
            forced = _children_of(trial, open_paths)
            trial = self._trial(Forcing(entries=forced, exits=forced))
            if is_noisy(trial):
                everything = frozenset(self._plan.reference_keys)
                trial = self._trial(Forcing(entries=everything, exits=everything))
                return outliers(trial), True
            more = opened(trial, open_paths) - open_paths
            if not more:
                break
            open_paths = open_paths | more
        return suspects(trial, open_paths), False

    def _trial(self, forcing: Forcing) -> Trial:
        done = self._pass(forcing)
        trial = as_trial(done.comparison, local=True)
        for call in trial.calls:
            if call.side is None and trial.enters_clean(call):
                for value in call.outputs:
                    self.local[call.module, call.call, value.name] = value.error
        return trial

    def _pass(self, forcing: Forcing) -> Pass:
        done = Pass(self._models, self._plan, self._sample, self._options, own_random=self._own_random, forcing=forcing)
        done.execute()
        for end in done.ends:
            if isinstance(end.error, KeyboardInterrupt):
                raise end.error
        return done

    def _confirmed(self, found: list[Suspect], before: float | None, noisy: bool) -> list[Finding]:
        """Heal all suspects at once; with several, leave each out in turn: the error that comes back is its own."""
        if noisy:
            return self._relieving(found, before)
        healed = self._final_after(found)
        plain = [suspect for suspect in found if not _is_related(suspect)]
        if plain and len(plain) < len(found) and not self._is_healed(healed, before):
            # A factor that somebody undoes further down must not be healed, and is no fault.
            without_related = self._final_after(plain)
            if self._is_healed(without_related, before):
                found, healed = plain, without_related
        if self._is_cast and not self._is_healed(healed, before):
            # Between two dtypes a visible step may be rounding that fell unluckily; only a cure makes it a fault.
            return []
        findings: list[tuple[float, Suspect, dict[str, Any]]] = []
        for suspect in found:
            without = before
            if len(found) > 1:
                without = self._final_after([other for other in found if other is not suspect])
                comes_back = without is None or healed is None or without > max(_AS_GOOD * healed, self._floor)
                # Where nothing comes back without it, it does not reach the output, or a suspect that comes after
                # it hides that; a plain error on clean arguments is one all the same.
                explained = _is_related(suspect) or suspect.kind in ("miscalls", "structure")
                if not comes_back and (explained or _is_inside(suspect, found)):
                    continue
            graft = {"before": without, "after": healed}
            findings.append((without if without is not None else float("inf"), suspect, graft))
        findings.sort(key=lambda entry: (-entry[0] if len(findings) > 1 else 0, entry[1].order))
        return [self._finding(rank, *entry[1:], before) for rank, entry in enumerate(findings, 1)]

    def _relieving(self, found: list[Suspect], before: float | None) -> list[Finding]:
        """Keep the outliers without which the final error is smaller; a folded scale makes it larger."""
        kept: list[tuple[float, Suspect]] = []
        for suspect in found:
            after = self._final_after([suspect])
            if after is None:
                continue
            relieves = before is not None and after < _RELIEVED * before
            if relieves or suspect.kind == "non_finite":
                kept.append((after, suspect))
        kept.sort(key=lambda entry: entry[0])
        return [
            self._finding(rank, suspect, {"before": before, "after": after}, before)
            for rank, (after, suspect) in enumerate(kept, 1)
        ]

    def _final_after(self, found: Sequence[Suspect]) -> float | None:
        """Return the final error with these suspects healed and everything else left as it is."""
        miscalls = [suspect for suspect in found if suspect.kind == "miscalls"]
        entries = {name for suspect in miscalls for name in suspect.callees}
        names = {suspect.argument for suspect in miscalls if suspect.argument is not None}
        exits = {suspect.module for suspect in found if suspect.kind != "miscalls"}
        forcing = Forcing(entries=entries, exits=exits, names=names.__contains__ if entries else None)
        done = self._pass(forcing)
        if any(end.error is not None for end in done.ends):
            return None
        return as_trial(done.comparison, local=False).final_error

    def _is_healed(self, after: float | None, before: float | None) -> bool:
        """Return whether the final error fell by ten times, or to what rounding explains."""
        if after is None:
            return False
        return before is None or after <= max(_HEALED * before, self._floor)

    def _finding(self, rank: int, suspect: Suspect, graft: dict[str, Any], before: float | None) -> Finding:
        static = list(self._static(suspect)) if suspect.kind != "miscalls" else []
        return Finding(
            rank=rank,
            module=suspect.module,
            call=suspect.call.call,
            kind=suspect.kind,
            argument=suspect.argument,
            callee=suspect.callees[0] if suspect.callees else None,
            members=tuple(suspect.callees) if suspect.kind == "miscalls" else (),
            count=len(suspect.callees) if suspect.kind == "miscalls" else 1,
            confirmed=self._is_healed(graft["after"], before),
            graft=graft,
            summary=summary(suspect, static),
            evidence=tuple(evidence_for(suspect, static, graft)),
            source=self._source(suspect),
        )

    def _static(self, suspect: Suspect) -> Iterator[str]:
        reference = self._models[0].modules.get(suspect.module)
        answering = [path for path, key in self._plan.candidate_keys.items() if key == suspect.module]
        if reference is not None and answering:
            yield from static_differences(reference, [self._models[1].modules[path] for path in answering])

    def _source(self, suspect: Suspect) -> dict[str, Any] | None:
        sites = suspect.callee.sites if suspect.callee is not None else (None, None)
        if sites == (None, None):
            return None
        return {
            name: None if site is None else {"file": _short(site[0]), "line": site[1], "function": site[2]}
            for name, site in zip(("reference", "candidate"), sites, strict=True)
        }


def as_trial(comparison: Comparison, *, local: bool) -> Trial:
    """Return what a pass left behind as a tree of calls; `local` judges each call by the error made in it alone."""
    made: dict[int, CallRecord] = {}
    roots: list[CallRecord] = []
    for met in comparison.met:
        record = _record(comparison, met, local=local)
        made[id(met)] = record
        (made[id(met.parent)].children if met.parent is not None else roots).append(record)
    return Trial(tuple(roots))


def _record(comparison: Comparison, met: Met, *, local: bool) -> CallRecord:
    call = met.call
    inner = max(_LOCAL_DEPTH, call.order - call.entry)
    depth_in, depth_out = (_LOCAL_DEPTH, inner) if local else (call.entry, call.order)

    def values(pairs: list[tuple[str, Any]], mark: str, depth: int) -> tuple[Value, ...]:
        return tuple(_value(comparison, name, pair, mark + name in met.forced, depth) for name, pair in pairs)

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
        raised=met.raised,
        ended=met.ended,
        sites=(sites[0], sites[1]),
    )


def _value(comparison: Comparison, name: str, pair: Any, forced: bool, depth: int) -> Value:
    found = pair.statistics()
    related = pair.relation.error if pair.relation is not None and pair.relation.kind == "mask" else None
    return Value(
        name=name,
        agrees=comparison.agrees(pair, depth),
        forced=forced,
        status=found.status,
        error=found.peir if related is None else related,
        rel_l2=found.rel_l2,
        relation=pair.relation.kind if pair.relation is not None else None,
        reference=pair.reference,
        candidate=pair.candidate,
        key=id(pair),
    )


def _children_of(trial: Trial, open_paths: set[str]) -> frozenset[str]:
    return frozenset(
        child.module
        for call in trial.calls
        if call.module in open_paths
        for child in call.children
        if child.side is None
    )


def _is_related(suspect: Suspect) -> bool:
    """Return whether what is wrong there is no more than a factor or a layout, which may be undone elsewhere."""
    return suspect.value is not None and suspect.value.relation in ("gain", "layout")


def _is_inside(suspect: Suspect, found: Sequence[Suspect]) -> bool:
    """Return whether the code around it is a suspect itself, and may undo what looks wrong there."""
    return any(
        other.has_children and other.kind == "introduces" and suspect.module.startswith(f"{other.module}.")
        for other in found
    )


def _plain_site(site: Site) -> tuple[str, int, str]:
    return site.file, site.line, site.function


def _short(file: str) -> str:
    """Return a file's name with its package, which is what a reader looks for, without the machine's folders."""
    parts = Path(file).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return Path(file).name
