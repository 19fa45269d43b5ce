"""Who answers to whom in a pair of models, before they run: the alignment, and what of it was chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from qtrace.align import Alignment, ModuleInfo, align
from qtrace.passes.model import Model
from qtrace.patterns import select


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared with what: `reference_keys` and `candidate_keys` map each side's paths to reference paths.

    `chosen` are the reference paths that `only` and `skip` leave, the root always among them. Under a `sparse` plan
    all other modules run without hooks.
    """

    alignment: Alignment
    chosen: frozenset[str]
    reference_keys: dict[str, str]
    candidate_keys: dict[str, str]
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


def make_plan(reference: Model, candidate: Model, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Plan:
    """Align two models by name; raises `UsageError` for a pattern of `only` or `skip` that matches no module."""
    # A module that stands in several places answers at each of them, under its first path.
    alias_infos = [
        ModuleInfo(path, type(reference.modules[first]).__name__) for path, first in reference.aliases.items()
    ]
    alignment = align([*reference.infos(), *alias_infos], candidate.infos())
    pairs = {
        path: replace(pair, reference=reference.aliases.get(pair.reference, pair.reference))
        for path, pair in alignment.pairs.items()
    }
    taken = {pair.reference for pair in pairs.values()}
    alignment = Alignment(pairs, tuple(path for path in reference.modules if path not in taken))
    paths = list(reference.modules)
    chosen = select(only, paths, option="--only") if only else set(paths)
    chosen -= select(skip, paths, option="--skip")
    chosen.add("")
    partnered = {pair.reference for pair in alignment.pairs.values()} & chosen
    return Plan(
        alignment,
        frozenset(chosen),
        {path: path for path in paths if path in partnered},
        {path: pair.reference for path, pair in alignment.pairs.items() if pair.reference in partnered},
    )
