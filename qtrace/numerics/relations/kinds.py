"""What a relation's kind says of a pair: the same values in another convention, or a description of what differs."""

from __future__ import annotations

from qtrace.report.records import Relation

# The candidate holds the reference's values, written down in another way that code after it may undo.
CONVENTIONS = frozenset({"layout", "mask", "gain", "channel_gain", "rotation", "halves", "permuted_channels"})
# The candidate has lost or changed values; how it did is evidence and no excuse.
DESCRIPTIONS = frozenset({"shifted", "clipped", "cast", "rounded", "where"})
# These hardly come about by accident, and whoever takes such a tensor must know of it.
DELIBERATE = frozenset({"channel_gain", "rotation", "halves", "permuted_channels"})


def excuses(relation: Relation | None) -> bool:
    """Return whether the candidate's tensor holds the reference's values in a convention of its own.

    Then `relation.error` is what remains of the difference under it (`peir_related`). The error of any other
    relation is evidence: the part of the pair that it speaks of agrees, and the pair does not.
    """
    return relation is not None and relation.kind in CONVENTIONS
