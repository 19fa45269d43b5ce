"""Plans the comparison of two models before they run: their alignment, and which modules were chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from qtrace.engine.align import Alignment, ModuleInfo, align
from qtrace.engine.align.weights import ALIKE, likeness
from qtrace.engine.model import Model
from qtrace.patterns import select

# How often each module of a side was called, by its own path, in the order of the first calls.
Calls = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """The modules to compare: `reference_keys` and `candidate_keys` map each side's paths to reference paths.

    `chosen` are the reference paths that `only` and `skip` leave, always with the root. Those of `outputs_only` return
    the same as their partners, but take other arguments. Under a `sparse` plan all other modules run without hooks.
    """

    alignment: Alignment
    chosen: frozenset[str]
    reference_keys: dict[str, str]
    candidate_keys: dict[str, str]
    outputs_only: frozenset[str] = frozenset()
    sparse: bool = False

    @property
    def by_order(self) -> list[str]:
        """Return the candidate paths that were paired only by their place in the order."""
        return [path for path, pair in self.alignment.pairs.items() if pair.rule == "order"]

    def restricted(self, keys: Collection[str]) -> Plan:
        """Return the plan that compares only the root and these reference paths."""
        kept = {"", *keys}
        return replace(
            self,
            chosen=self.chosen & kept,
            reference_keys={path: key for path, key in self.reference_keys.items() if key in kept},
            candidate_keys={path: key for path, key in self.candidate_keys.items() if key in kept},
            sparse=True,
        )


def make_plan(
    reference: Model,
    candidate: Model,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    *,
    renames: Mapping[str, str] | None = None,
    calls: tuple[Calls, Calls] | None = None,
    denied: Collection[str] = (),
) -> Plan:
    """Return the plan of two models; raises `UsageError` for a pattern that matches no module.

    Patterns are those of `only`, `skip` and `renames`, which maps patterns of candidate paths to reference paths.
    `calls` says, if known from an earlier run, how often each side's modules are called, in the order of their first
    calls; then only modules that run can be partners. No module is aligned with one of `denied` only by its path.
    """
    # A module that occurs in several places can be aligned at each of them, under its first path.
    alias_infos = [
        ModuleInfo(path, type(reference.modules[first]).__name__) for path, first in reference.aliases.items()
    ]
    mine, theirs = calls or (None, None)
    alignment = align([*_infos(reference, mine), *alias_infos], _infos(candidate, theirs), renames, denied=denied)
    pairs = {
        path: replace(pair, reference=reference.aliases.get(pair.reference, pair.reference))
        for path, pair in alignment.pairs.items()
    }
    taken = {pair.reference for pair in pairs.values()}
    alone = tuple(path for path in reference.modules if path not in taken)
    alignment = replace(alignment, pairs=pairs, alone=alone)
    paths = list(reference.modules)
    chosen = select(only, paths, option="--only") if only else set(paths)
    chosen -= select(skip, paths, option="--skip")
    chosen.add("")
    partnered = taken & chosen
    return Plan(
        alignment,
        frozenset(chosen),
        {path: path for path in paths if path in partnered},
        {path: pair.reference for path, pair in pairs.items() if pair.reference in partnered},
        frozenset(pair.reference for pair in pairs.values() if pair.rule == "fused"),
    )


def better_plan(
    plan: Plan,
    models: tuple[Model, Model],
    calls: tuple[Calls, Calls],
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    *,
    renames: Mapping[str, str] | None = None,
    doubted: Collection[str] = (),
) -> Plan | None:
    """Return a plan made with the calls of both sides, where these lead to more or other partners; else None.

    Then more of the modules that the reference calls have a partner, or modules that were paired by the order of
    definition are called in another order. `doubted` are the reference paths that differ although the final outputs
    agree: where their weights match other modules than the paths say, the weights decide.
    """
    known = _answered(plan, calls)
    sure = not plan.by_order and all(path in known for path in plan.chosen if calls[0].get(path))
    lying = _lying(plan, models, doubted)
    if lying:
        better = make_plan(*models, only, skip, renames=renames, calls=calls, denied=doubted)
        by_weights = {pair.reference for pair in better.alignment.pairs.values() if pair.rule == "weights"}
        if lying <= by_weights and len(_answered(better, calls)) >= len(known):
            return better
    if sure:
        return None
    better = make_plan(*models, only, skip, renames=renames, calls=calls)
    gained = len(_answered(better, calls)) - len(known)
    is_other = any(better.alignment.pairs.get(path) != plan.alignment.pairs[path] for path in plan.by_order)
    return better if gained > 0 or (gained == 0 and is_other) else None


def _lying(plan: Plan, models: tuple[Model, Model], doubted: Collection[str]) -> set[str]:
    """Return the doubted paths whose pairs hold unrelated weights."""
    mine, theirs = (model.modules for model in models)
    pairs = [pair for pair in plan.alignment.pairs.values() if pair.reference in doubted]
    found = {pair.reference: likeness(mine[pair.reference], theirs[pair.candidate]) for pair in pairs}
    return {path for path, alike in found.items() if alike is not None and not alike >= ALIKE}


def _answered(plan: Plan, calls: tuple[Calls, Calls]) -> set[str]:
    """Return the reference paths that are called and have a partner that is called, too."""
    guessed = set(plan.by_order)
    return {
        key
        for path, key in plan.candidate_keys.items()
        if calls[1].get(path) and calls[0].get(key) and (path not in guessed or calls[1].get(path) == calls[0].get(key))
    }


def _infos(model: Model, calls: Calls | None) -> list[ModuleInfo]:
    first = {path: n for n, path in enumerate(calls or ())}
    return [
        ModuleInfo(
            info.path,
            info.type,
            info.attributes,
            model.modules[info.path],
            None if calls is None else calls.get(info.path, 0),
            first.get(info.path),
        )
        for info in model.infos()
    ]
