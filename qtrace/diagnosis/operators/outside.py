"""What goes into a call and comes out of it, compared side against side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qtrace.diagnosis.operators.recorder import Recorder
from qtrace.engine.comparison import Comparison
from qtrace.engine.leaves import LeafPair, argument_leaves, match_arguments, match_leaves
from qtrace.engine.pair import PairComparer
from qtrace.numerics.tolerance import Floors
from qtrace.report.records.operators import Differing


def arguments(reference: Recorder, candidate: Recorder) -> Iterator[LeafPair]:
    """Yield the pairs of argument values, under the reference's names."""
    for name, mine, theirs in match_arguments(reference.arguments, candidate.arguments):
        yield from argument_leaves(name, mine, theirs)


def outputs(reference: Recorder, candidate: Recorder) -> list[LeafPair]:
    """Return the pairs of what was returned, by output path."""
    return match_leaves(list(reference.returned.items()), list(candidate.returned.items()))


def differing(pairs: Iterable[LeafPair], floors: Floors, depth: int) -> Iterator[Differing]:
    """Yield what differs by more than rounding, `depth` calls after the inputs."""
    comparer, judge = PairComparer(), Comparison(floors=floors)
    for name, mine, theirs in pairs:
        pair = comparer.compare(mine, theirs)
        if pair is None or judge.agrees(pair, depth):
            continue
        comparer.explain(pair, mine, theirs, floors.of(pair.dtypes, depth))
        found = pair.statistics()
        yield Differing(name, found.status, pair.reference, pair.candidate, pair.relation, found.peir)
