"""Who answers to whom in a pair of models, before they run: the alignment, and what of it was chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from qtrace.align import Alignment, ModuleInfo, align
from qtrace.passes.model import Model
from qtrace.patterns import select

# How often each module of a side was called, by its own path.
Calls = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared with what: `reference_keys` and `candidate_keys` map each side's paths to reference paths.

    `chosen` are the reference paths that `only` and `skip` leave, the root always among them. Those of `outputs_only`
    return what their partners do, and take something else. Under a `sparse` plan all other modules run without hooks.
    """

    alignment: Alignment
    chosen: frozenset[str]
    reference_keys: dict[str, str]
    candidate_keys: dict[str, str]
    outputs_only: frozenset[str] = frozenset()
    sparse: bool = False

    def restricted(self, keys: Collection[str]) -> Plan:
        """Return the plan that compares the root and these reference paths, and passes everything else by."""
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
) -> Plan:
    """Align two models; raises `UsageError` for a pattern of `only`, `skip` or `renames` that matches no module.

    `renames` maps patterns of candidate paths to reference paths. Where it is known from a run before how often each
    side's modules are called, `calls` says so: only what runs can be a partner then.
    """
    # A module that stands in several places answers at each of them, under its first path.
    alias_infos = [
        ModuleInfo(path, type(reference.modules[first]).__name__) for path, first in reference.aliases.items()
    ]
    mine, theirs = calls or (None, None)
    alignment = align([*_infos(reference, mine), *alias_infos], _infos(candidate, theirs), renames)
    pairs = {
        path: replace(pair, reference=reference.aliases.get(pair.reference, pair.reference))
        for path, pair in alignment.pairs.items()
    }
    taken = {pair.reference for pair in pairs.values()}
    alone = tuple(path for path in reference.modules if path not in taken)
    alignment = Alignment(pairs, alone, alignment.fused)
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
) -> Plan | None:
    """Return a plan that knows what runs, where it finds partners for more of what the reference calls; else None."""
    known = _answered(plan, calls)
    if all(path in known for path in plan.chosen if calls[0].get(path)):
        return None
    better = make_plan(*models, only, skip, renames=renames, calls=calls)
    return better if len(_answered(better, calls)) > len(known) else None


def _answered(plan: Plan, calls: tuple[Calls, Calls]) -> set[str]:
    """Return the reference paths that are called and have a partner that is."""
    return {key for path, key in plan.candidate_keys.items() if calls[1].get(path) and calls[0].get(key)}


def _infos(model: Model, calls: Calls | None) -> list[ModuleInfo]:
    return [
        ModuleInfo(
            info.path,
            info.type,
            info.attributes,
            model.modules[info.path],
            None if calls is None else calls.get(info.path, 0),
        )
        for info in model.infos()
    ]
