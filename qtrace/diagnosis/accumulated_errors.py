"""Who is at fault, judged by what accumulated alone: for sides that cannot be handed anything, as a stored trace.

Nothing is forced and nothing healed. What is left is the first place where an error shows on arguments that agree:
behind it everything differs, and what else may be wrong there cannot be told from what came in.
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
    """Return who is at fault after a pass without forcing, what is wrong beyond doubt first, then in execution order.

    A caller whose arguments agree, and everything that it called before, hands over an argument that does not: it
    `miscalls`. Of several wrong arguments of one call, the first that is there on both sides is named: which of them
    does the harm would have to be tried. A module whose arguments agree returns something else, and nothing inside it
    does so on arguments that agree: it `introduces` the error. Where differing is the rule, as under quantization,
    nobody is named.
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
    """Return the miscalls by an argument of another shape that show once what one side leaves out counts for nothing.

    What is not passed on one side may well not be used on the other, and hides what is wrong further in.
    """
    odd = {(call.type, v.name) for call in trial.calls for v in call.arguments if not v.agrees and _is_one_sided(v)}
    found = _suspects(Trial(trial.roots, trial.known | odd)) if odd else []
    hard = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH)
    return [s for s in found if s.kind == "miscalls" and s.value is not None and s.value.status in hard]


def _one_per_call(found: list[Suspect]) -> list[Suspect]:
    kept: dict[object, Suspect] = {}
    # Stable: among those that are there on both sides, the order of the parameters decides.
    for suspect in sorted(found, key=_is_left_out):
        is_miscall = suspect.kind == "miscalls" and suspect.callee is not None
        suspect.also_calls(_handed_on_to(suspect))
        kept.setdefault(id(suspect.callee) if is_miscall else (suspect.kind, suspect.module), suspect)
    return list(kept.values())


def _handed_on_to(suspect: Suspect) -> list[str]:
    """Return the further callees that are handed the very same tensors."""
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
    """Return whether it hands over nothing on one side where it hands over a tensor on the other."""
    return suspect.callee is not None and suspect.value is not None and _is_one_sided(suspect.value)


def _is_one_sided(value: Value) -> bool:
    return any(spec is None or spec.shape is None for spec in (value.reference, value.candidate))


def _is_extra(suspect: Suspect) -> bool:
    """Return whether all that it shows is an output that the candidate returns beside the reference's."""
    return suspect.callee is None and all(
        value.agrees or value.status is Status.CANDIDATE_ONLY for value in suspect.call.outputs
    )


def _is_relaid(suspect: Suspect) -> bool:
    """Return whether a callee takes its argument in another order of axes, and returns in that what it makes of it.

    Then it is a layout of the candidate's own, which whoever takes the output may well undo.
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
    """Return whether it may be a convention that some later module expects: a factor, or reordered channels."""
    return suspect.value is not None and (suspect.value.is_gain or suspect.value.deliberate)
