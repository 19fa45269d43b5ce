"""The lists of `qtrace modules`: the pairs with their calls, and the modules without a partner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from qtrace.cli.listeners import CallCounter
from qtrace.engine.model import Model
from qtrace.engine.plan import better_plan, make_plan
from qtrace.report.records import Unmatched
from qtrace.report.records.rows import Pairing


def aligned(
    reference: torch.nn.Module,
    candidate: torch.nn.Module,
    counters: tuple[CallCounter, CallCounter],
    unmatched: Iterable[Unmatched],
    renames: Mapping[str, str] | None = None,
) -> tuple[list[Pairing], list[Unmatched]]:
    """Return the pairs in the reference's order, and the modules without a partner, those that the run noted first."""
    mine, theirs = (counter.calls for counter in counters)
    models = (Model("reference", reference), Model("candidate", candidate))
    plan = make_plan(*models, renames=renames)
    # Where the run chose another partner than the paths suggest, it found that the weights differ.
    heard = counters[1].keys
    doubted = {key for path, key in plan.candidate_keys.items() if path in heard and heard[path] != key}
    better = better_plan(plan, models, (mine, theirs), renames=renames, doubted=doubted)
    alignment = (better or plan).alignment
    place = {path: n for n, (path, _) in enumerate(reference.named_modules())}
    pairings = [
        replace(pair, reference_calls=mine[pair.reference], candidate_calls=theirs[pair.candidate])
        for pair in sorted(alignment.pairs.values(), key=lambda pair: place[pair.reference])
    ]
    paired = {pair.reference for pair in pairings}
    # A fused pair counts as a pair, although its arguments differ and it is not compared.
    alone = [
        one for one in unmatched if one.side != "reference" or one.reason != "no_partner" or one.module not in paired
    ]
    known = {(one.side, one.module) for one in alone}
    references = list(alignment.alone)
    candidates = [path for path, _ in candidate.named_modules() if path not in alignment.pairs]
    for side, model, paths, calls in (
        ("reference", reference, references, mine),
        ("candidate", candidate, candidates, theirs),
    ):
        types = {path: type(module).__name__ for path, module in model.named_modules()}
        alone += [
            Unmatched(side, path, types[path], calls[path], "no_partner") for path in paths if (side, path) not in known
        ]
    fusing = set(alignment.fused.values())
    known_why = {*alignment.fused, *alignment.split}
    for n, one in enumerate(alone):
        if one.side == "reference" and one.module in known_why:
            alone[n] = replace(one, reason=alignment.why(one.module))
        elif one.side == "candidate" and one.module in fusing:
            alone[n] = replace(one, reason="fuses")
    return pairings, alone


def alike(reference: torch.nn.Module, candidate: torch.nn.Module, pairings: Iterable[Pairing]) -> dict[str, float]:
    """Return the similarity of each pair's weights, 0 to 1, by the candidate's path, where weights can be read."""
    from qtrace.engine.align.weights import likeness

    mine, theirs = dict(reference.named_modules()), dict(candidate.named_modules())
    found = {pair.candidate: likeness(mine[pair.reference], theirs[pair.candidate]) for pair in pairings}
    return {path: value for path, value in found.items() if value is not None}
