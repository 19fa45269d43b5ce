"""What an expression gives on each side, against the other: where it was found, how far apart, how related."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qtrace.debug.leaves import Agrees, columns, described, judged
from qtrace.debug.stop import NAMES
from qtrace.engine.leaves import argument_leaves
from qtrace.engine.pair import Pair, PairComparer

# Python's own names for an expression. `input` is what torch calls its modules' argument, never the terminal's.
BUILTINS = {name: value for name, value in vars(builtins).items() if name != "input"}
# Of more values than that, as of a whole config, plain ones that are equal are only named, and only some of them.
_MOST_IN_FULL, _MOST_NAMED = 8, 6

Tolerance = Callable[[Pair], float]


@dataclass(frozen=True, slots=True)
class Found:
    """A value of one side, and the place where its name was found."""

    value: Any
    place: str


def difference(
    reference: Found, candidate: Found, comparer: PairComparer, *, agrees: Agrees, tolerance: Tolerance
) -> Iterator[str]:
    """Yield what an expression gave on each side, then for each pair of leaves how they differ and are related.

    Args:
        reference: the reference's value.
        candidate: the candidate's.
        comparer: compares two leaves.
        agrees: whether a pair is the same up to rounding.
        tolerance: the PEIR up to which elements of a pair agree.
    """
    leaf_pairs = argument_leaves("", reference.value, candidate.value)
    if not leaf_pairs:
        yield from columns(
            [(side, at.place, " ".join(repr(at.value).split())[:200]) for side, at in _sides(reference, candidate)]
        )
        return
    folded = []
    for path, mine, theirs in leaf_pairs:
        pair = comparer.compare(mine, theirs)
        if pair is None and len(leaf_pairs) > _MOST_IN_FULL:
            folded.append(path)
            continue
        if path:
            yield f"{path}:"
        at = zip(_sides(reference, candidate), (mine, theirs), strict=True)
        yield from columns([(side, found.place, *described(leaf)) for (side, found), leaf in at])
        if pair is not None and pair.measurement is not None and not agrees(pair):
            comparer.explain(pair, mine, theirs, tolerance(pair))
        yield from judged(pair, mine, theirs, agrees=agrees)
    if folded:
        rest = len(folded) - _MOST_NAMED
        yield f"equal: {', '.join(folded[:_MOST_NAMED])}" + (f" and {rest} more" if rest > 0 else "")


def _sides(reference: Found, candidate: Found) -> list[tuple[str, Found]]:
    return list(zip(NAMES, (reference, candidate), strict=True))
