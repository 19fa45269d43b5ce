"""The lines of a container's own code in which it goes wrong: the operator view without a look at the values."""

from __future__ import annotations

from qtrace.diagnosis.operators import outside
from qtrace.diagnosis.operators.decision import decide
from qtrace.diagnosis.operators.graph import Recorded, Recording
from qtrace.diagnosis.operators.split import Parting
from qtrace.diagnosis.operators.target import Target
from qtrace.diagnosis.operators.view import coming_in, recordings_of, returned
from qtrace.engine.events import Site
from qtrace.errors import QtraceError
from qtrace.numerics.tolerance import Floors

Sites = tuple[Site | None, Site | None]
# A call of more operators is not looked into: it would take longer than all the passes before.
MOST_OPERATORS = 1000


def pinpoint(found: Target, index: int, floors: Floors) -> Sites | None:
    """Return, for each side, the line of the module's own code in which it parts from the other one.

    A side that leaves something out has no such line: None. Each side is run once, as far as the end of that call. None
    altogether where the call cannot be run again, where its outputs then agree, where arguments that differ come in at
    the split, or where the call is too long.
    """
    try:
        _, recorders, _ = found.first(index, most=MOST_OPERATORS)
    except QtraceError:
        return None
    if any(recorder.is_cut_short for recorder in recorders):
        return None
    depth = len(found.plan.reference_keys)
    pairs = outside.outputs(*recorders)
    differing = {one.name for one in outside.differing(pairs, floors, depth)}
    recordings = recordings_of(recorders)
    decision = decide(recordings, returned(recorders, recordings, pairs, differing), floors, depth)
    if not differing or coming_in(recordings, decision):
        return None
    first, second = (
        _operator(recording, parted)
        for recording, parted in zip(recordings, (decision.reference, decision.candidate), strict=True)
    )
    both_held = decision.reference.left_out and decision.candidate.left_out
    if both_held and (first is None or second is None or first.name != second.name):
        # Both return what the other one holds as well, by operators that have nothing to do with each other.
        return None
    mine, theirs = (
        None if one is None or left_out else one.origin.own
        for one, left_out in zip((first, second), decision.left_out, strict=True)
    )
    return mine, theirs


def _operator(recording: Recording, parted: Parting) -> Recorded | None:
    return None if parted.first is None else recording.operators[recording.values[parted.first].operator]
