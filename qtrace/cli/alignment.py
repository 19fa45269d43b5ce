"""What `qtrace modules` lists: the pairs with their calls, and everybody who has no partner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from qtrace.cli.listeners import CallCounter
from qtrace.passes.model import Model
from qtrace.passes.plan import make_plan
from qtrace.records import Unmatched
from qtrace.records.calls import Pairing


def aligned(
    reference: torch.nn.Module,
    candidate: torch.nn.Module,
    counters: tuple[CallCounter, CallCounter],
    unmatched: Iterable[Unmatched],
) -> tuple[list[Pairing], list[Unmatched]]:
    """Return the pairs in the reference's order, and who has none, what the run noted first."""
    mine, theirs = (counter.calls for counter in counters)
    alignment = make_plan(Model("reference", reference), Model("candidate", candidate)).alignment
    place = {path: n for n, (path, _) in enumerate(reference.named_modules())}
    pairings = [
        replace(pair, reference_calls=mine[pair.reference], candidate_calls=theirs[pair.candidate])
        for pair in sorted(alignment.pairs.values(), key=lambda pair: place[pair.reference])
    ]
    alone = list(unmatched)
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
    return pairings, alone
