"""Is a pair right? What the values say, independently of the rule that made it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from qtrace.engine.align.weights import ALIKE, sample_of
from qtrace.report.records import Pairing, ReportData

# What a module computes on the reference's own arguments is at most so far off (as PEIR), even with few bits.
FAR = 0.5


@dataclass
class Checked:
    """The pairs that ran: by weights or by their local error right, not to be told, wrong."""

    by_weights: int = 0
    by_error: int = 0
    unknown: int = 0
    wrong: tuple[str, ...] = ()


def check(reference: nn.Module, candidate: nn.Module, pairings: list[Pairing], report: ReportData) -> Checked:
    """Judge every pair: by the dequantized weight, else by the error that it makes on the reference's arguments.

    A weight that is more like another reference module's of that shape than like its partner's is a wrong pair, and so
    is a module that computes something else altogether from what its partner was given.
    """
    mine = {path: sample_of(module) for path, module in reference.named_modules()}
    theirs = dict(candidate.named_modules())
    errors: dict[str, float] = {}
    for row in report.rows:
        if row.peir_local is not None:
            # A module may return beside its result what is made otherwise, such as attention's weights.
            errors[row.module] = min(errors.get(row.module, row.peir_local), row.peir_local)
    found = Checked()
    for pair in pairings:
        sample, own = sample_of(theirs[pair.candidate]), mine[pair.reference]
        alike = own.likeness(sample) if own is not None else None
        if alike is not None:
            others = (other.likeness(sample) for other in mine.values() if other is not None)
            if alike >= ALIKE or alike >= max(value for value in others if value is not None):
                found.by_weights += 1
            else:
                found.wrong += (pair.reference,)
        elif pair.reference in errors:
            if errors[pair.reference] <= FAR:
                found.by_error += 1
            else:
                found.wrong += (pair.reference,)
        else:
            found.unknown += 1
    return found
