"""What each row that differs means, from the calls around it: did the error come in, or was it made here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from qtrace.diagnosis.trial import CallRecord, Trial, Value
from qtrace.report.records import Finding, Status, Verdict

# What leaves so many times larger than it came in was amplified, not just passed on.
_AMPLIFIED = 10.0
Key = tuple[str, int, str]


def verdicts(
    trial: Trial, findings: Sequence[Finding] = (), made: Mapping[Key, bool] | None = None
) -> dict[Key, Verdict]:
    """Return the verdict of each output that differs, by (module, call, output).

    Args:
        trial: the pass without forcing.
        findings: who was named: their rows are `introduced`, those of their callees `miscalled`.
        made: whether an output shows an error of its own on the reference's arguments, where that was measured.
            Without it a call is judged by its arguments: clean ones, and nobody inside who differs, mean that
            the error was made there.

    A difference that an enclosing call undoes is `absorbed`, whatever made it. One that is no more than a factor is
    `gain`, unless it was named a fault.
    """
    guilty: set[str] = set()
    misled: set[str] = set()
    for finding in findings:
        if finding.kind == "miscalls":
            misled.update(finding.callees)
        else:
            guilty.update((finding.module, *finding.members))
    found: dict[Key, Verdict] = {}

    def descend(call: CallRecord, parent: CallRecord | None, absorbed: bool) -> None:
        if call.side is not None:
            return
        for value in call.outputs:
            if not value.agrees:
                key = (call.module, call.call, value.name)
                if absorbed:
                    found[key] = Verdict.ABSORBED
                elif call.module in misled:
                    found[key] = Verdict.MISCALLED
                elif call.module in guilty:
                    found[key] = Verdict.INTRODUCED
                elif value.is_gain:
                    found[key] = Verdict.GAIN
                else:
                    found[key] = _way(trial, call, parent, value, made or {})
        undone = absorbed or (call.ended and bool(call.outputs) and not call.differs)
        for child in call.children:
            descend(child, call, undone)

    for root in trial.roots:
        descend(root, None, False)
    return found


def _way(trial: Trial, call: CallRecord, parent: CallRecord | None, value: Value, made: Mapping[Key, bool]) -> Verdict:
    """Return how a difference came to be in an output that nobody was named for."""
    own = made.get((call.module, call.call, value.name))
    if own:
        return Verdict.INTRODUCED
    if trial.enters_clean(call) and any(child.side is None and child.differs for child in call.children):
        # It came from inside.
        return Verdict.INHERITED
    if own is None and trial.enters_clean(call):
        return Verdict.INTRODUCED
    if own is None and parent is not None and _is_misled(trial, call, parent):
        return Verdict.MISCALLED
    wrong = [value.error for value in call.arguments if not value.agrees and value.status is not Status.CANDIDATE_ONLY]
    received = max((error for error in wrong if error is not None), default=0.0)
    # Beside an argument of another kind there is no saying how much came in.
    if received and None not in wrong and value.error is not None and value.error > _AMPLIFIED * received:
        return Verdict.AMPLIFIED
    return Verdict.INHERITED


def _is_misled(trial: Trial, call: CallRecord, parent: CallRecord) -> bool:
    """Return whether the caller, right until then, handed this call something else."""
    before: Collection[CallRecord] = [c for c in parent.children if c.side is None and c.order < call.order]
    return trial.enters_clean(parent) and not any(child.differs for child in before if child is not call)
