"""The same values, cut off at a bound: saturation, or an activation that lets through one side only."""

from __future__ import annotations

from typing import Any

from qtrace.numerics.relations.difference import Difference
from qtrace.report.records import Relation

# One value at a bound may be any fault; several, all cut to one value, are a bound.
_PLATEAU = 2
# What was cut off lies on the bound to the bit, but for a few that rounding has put on its other side.
_FLAT = 0.9
# The rest must agree, and be enough to tell something.
_UNTOUCHED = 0.1
_EVIDENCE = 8


def clipped_relation(difference: Difference) -> Relation | None:
    """Return the relation "clipped" where candidate = min(max(reference, lo), hi), else None.

    At least a tenth of the elements must be untouched. `parameters` are "lo" and "hi", as far as they cut
    anything off, and "share", the fraction of elements cut off; `error` is the PEIR of the clipped reference
    against the candidate.
    """
    reference, candidate = difference.reference, difference.candidate
    lo, hi = float(candidate.min()), float(candidate.max())
    near = difference.limit * difference.interval
    if difference.exact or not lo < hi or not (reference.min() < lo - near or reference.max() > hi + near):
        return None
    clipped = reference.clamp(lo, hi)
    error = difference.remains(clipped, candidate)
    if not difference.explained(error) or not difference.improves(reference, clipped, candidate):
        return None
    below, above = int((reference < lo - near).sum()), int((reference > hi + near).sum())
    untouched = reference.numel() - below - above
    at_lo, at_hi = int((candidate == lo).sum()), int((candidate == hi).sum())
    if at_lo < _FLAT * below or at_hi < _FLAT * above:
        return None
    if max(below, above) < _PLATEAU or untouched < max(_EVIDENCE, _UNTOUCHED * reference.numel()):
        return None
    parameters: dict[str, Any] = {"share": (below + above) / reference.numel()}
    parameters |= {"lo": lo} if below else {}
    parameters |= {"hi": hi} if above else {}
    return Relation("clipped", parameters, error)
