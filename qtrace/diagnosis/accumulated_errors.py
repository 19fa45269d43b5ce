"""Names the modules at fault from the accumulated pass alone: for a side that cannot be forced, as a stored trace.

No tensor is forced and no suspect is healed. The only evidence is the first place where an error shows on arguments
that agree. Behind that place everything differs: a further fault cannot be told from the error that came in.
"""

from __future__ import annotations

from qtrace.diagnosis.outliers import is_noisy
from qtrace.diagnosis.suspects import Suspect, containers_to_open, repeats, suspects
from qtrace.diagnosis.trial import Trial, Value
from qtrace.report.records import Status

# An error of the size of noise (a relative L2 below that of three bits) needs modules that show none, to stand out.
_SMALL = 0.25
_FEWEST_RIGHT = 3


def accumulated(trial: Trial) -> list[Suspect]:
    """Return the suspects of a pass without forcing: those beyond doubt first, then in execution order.

    A caller `miscalls` if its own arguments and the outputs of all its earlier calls agree, but it passes an argument
    that does not. Of several wrong arguments of one call, the first one present on both sides is named: only a trial
    could tell which of them does the harm. A module `introduces` the error if its arguments agree, its output does
    not, and no module inside it differs on arguments that agree. Where differing is the rule, as under quantization,
    no module is named.
    """
    if is_noisy(trial):
        return []
    found = repeats(_one_per_call([*_of_another_kind(trial), *_suspects(trial)]), trial)
    return sorted(found, key=lambda suspect: (_may_be_undone(suspect), _is_left_out(suspect), suspect.order))


def _suspects(trial: Trial) -> list[Suspect]:
    found = suspects(trial, containers_to_open(trial))
    return [
        suspect for suspect in found if not (_is_extra(suspect) or _is_relaid(suspect) or _may_be_noise(trial, suspect))
    ]


def _of_another_kind(trial: Trial) -> list[Suspect]:
    """Return the miscalls by an argument of another shape that show once one-sided arguments are ignored.

    An argument that one side does not pass may well be unused on the other; it hides errors further inside.
    """
    odd = {(call.type, v.name) for call in trial.calls for v in call.arguments if not v.agrees and _is_one_sided(v)}
    found = _suspects(Trial(trial.roots, trial.known | odd)) if odd else []
    hard = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH)
    return [s for s in found if s.kind == "miscalls" and s.value is not None and s.value.status in hard]


def _one_per_call(found: list[Suspect]) -> list[Suspect]:
    kept: dict[object, Suspect] = {}
    # The sort is stable: among arguments present on both sides, the order of the parameters decides.
    for suspect in sorted(found, key=_is_left_out):
        is_miscall = suspect.kind == "miscalls" and suspect.callee is not None
        suspect.also_calls(_handed_on_to(suspect))
        kept.setdefault(id(suspect.callee) if is_miscall else (suspect.kind, suspect.module), suspect)
    return list(kept.values())


def _handed_on_to(suspect: Suspect) -> list[str]:
    """Return the further callees that receive the very same tensors."""
    value = suspect.value
    if suspect.callee is None or value is None:
        return []
    return [
        child.module
        for child in suspect.call.children
        if child.order > suspect.callee.order
        and any(v.key == value.key and v.name == value.name for v in child.arguments)
    ]


def _is_left_out(suspect: Suspect) -> bool:
    """Return whether the suspect passes a tensor on one side only."""
    return suspect.callee is not None and suspect.value is not None and _is_one_sided(suspect.value)


def _is_one_sided(value: Value) -> bool:
    return any(spec is None or spec.shape is None for spec in (value.reference, value.candidate))


def _is_extra(suspect: Suspect) -> bool:
    """Return whether the suspect's only difference is an output that the candidate returns in addition."""
    return suspect.callee is None and all(
        value.agrees or value.status is Status.CANDIDATE_ONLY for value in suspect.call.outputs
    )


def _is_relaid(suspect: Suspect) -> bool:
    """Return whether a callee receives its argument and returns its output in another order of axes.

    Then it is a layout of the candidate's own, which the module that receives the output may well undo.
    """
    value, callee = suspect.value, suspect.callee
    if value is None or callee is None or not _has_permuted_axes(value):
        return False
    return all(_has_permuted_axes(output) for output in callee.outputs if not output.agrees)


def _has_permuted_axes(value: Value) -> bool:
    shapes = [spec.shape for spec in (value.reference, value.candidate) if spec is not None and spec.shape is not None]
    if value.status is not Status.SHAPE_MISMATCH or len(shapes) < 2:
        return False
    return sorted(shapes[0]) == sorted(shapes[1])


def _may_be_noise(trial: Trial, suspect: Suspect) -> bool:
    value = suspect.value
    if suspect.kind != "introduces" or value is None or value.status is not Status.COMPARED:
        return False
    if value.rel_l2 is None or value.rel_l2 >= _SMALL:
        return False
    leaves = [call for call in trial.calls if call.side is None and not call.children and call.outputs]
    right = {call.module for call in leaves if trial.enters_clean(call) and not call.differs}
    return len(right) < _FEWEST_RIGHT


def _may_be_undone(suspect: Suspect) -> bool:
    """Return whether it may be a convention that a later module expects: a factor, or reordered channels."""
    return suspect.value is not None and (suspect.value.is_gain or suspect.value.deliberate)
