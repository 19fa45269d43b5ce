"""Finds the modules that err by far more than their peers where every module errs a little, as under quantization.

An error above zero is normal there. Peers are values of the same role: the outputs, or one argument, of modules of the
same class, and of the same last name where enough of them share it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from statistics import median

from qtrace.diagnosis.suspects import Suspect, grouped, role
from qtrace.diagnosis.trial import CallRecord, Trial, Value
from qtrace.report.records import Status

# From this share of modules that differ on clean arguments on, differing is normal.
_NORMAL = 0.4
# The share that is also required of the modules of the same classes.
_MOST_OF_CLASS = 2 / 3
# The relative L2 error of noise; that of eight to five bits is below 0.11.
_SMALL = 0.25
_FAR = 6.0
_FEWEST_PEERS = 3
# A share of places, such as tokens or channels.
_FEW = 0.25
_FEWEST_OTHERS = 4
_LEAST = 1e-9
_HALF = ("bfloat16", "float16")
_BEYOND_NUMBERS = (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH, Status.NON_FINITE)


@dataclass(frozen=True, slots=True)
class _Measured:
    """An error made in one place: `argument` is None for an output; `container` made the call."""

    call: CallRecord
    container: CallRecord | None
    value: Value
    error: float

    @property
    def argument(self) -> str | None:
        return None if self.value in self.call.outputs else self.value.name.split(".")[0]

    @property
    def role(self) -> tuple[str, str | None]:
        return self.call.type, self.argument

    @property
    def name(self) -> str:
        """Return the last component that is no number, with those after it: "down_proj", or "up.*" in a sequence."""
        parts = role(self.call.module).split(".")
        last = max((place for place, part in enumerate(parts) if part != "*"), default=0)
        return ".".join(parts[last:])


def is_noisy(trial: Trial) -> bool:
    """Return whether differing a little on clean arguments is the rule among the leaves that were forced.

    It is the rule where many modules differ, and most modules of the classes that differ. A module that differs by its
    own size is not counted: that is no noise, but a fault, or values in another form (rotated, or with folded scales).
    """
    leaves = [call for call in trial.calls if call.side is None and not call.children and call.outputs]
    # A dropout or an activation that agrees holds nothing that could be quantized, so it is no evidence.
    telling = [call for call in leaves if call.has_data or call.differs]
    judged = [call for call in telling if trial.enters_clean(call) and not _is_rewritten(call)]
    off = [call for call in judged if call.differs]
    modules, differing = ({call.module for call in calls} for calls in (judged, off))
    classes = {call.type for call in off}
    alike = {call.module for call in judged if call.type in classes}
    if len(modules) < _FEWEST_PEERS:
        return False
    return len(differing) >= max(_NORMAL * len(modules), _MOST_OF_CLASS * len(alike))


def coarse_dtypes(trial: Trial) -> set[str]:
    """Return the half precisions that only the candidate computes in, and as a rule, as under autocast.

    As a rule: the required share of the leaves with weights returns them.
    """
    pairs = [
        (value.reference.dtype, value.candidate.dtype)
        for call in trial.calls
        if call.side is None and not call.children and call.has_data
        for value in call.outputs[:1]
        if value.reference is not None and value.candidate is not None
    ]
    coarser = [theirs for mine, theirs in pairs if theirs in _HALF and mine not in _HALF]
    return set(coarser) if len(coarser) >= max(_NORMAL * len(pairs), 1) else set()


def _is_rewritten(call: CallRecord) -> bool:
    if not call.differs:
        return False
    off = max((value.rel_l2 or 0.0 for value in call.outputs), default=0.0)
    return off >= _SMALL or any(value.deliberate for value in (*call.arguments, *call.outputs))


def outliers(trial: Trial) -> list[Suspect]:
    """Return the suspects that stand out, worst first.

    A suspect has an own error of more than six times the peers' median, an argument of another kind, or a NaN. A value
    without peers is measured against all other outputs. So is a value that is the reference's on a grid: a toolkit may
    round at that place only, in the code between two modules.
    """
    measured = list(_errors(trial))
    noise = [one.error for one in measured if one.argument is None and one.error > _LEAST]
    found: list[tuple[float, Suspect]] = []
    for one in measured:
        peers = _peers(one, measured)
        typical = max(median(peers), _LEAST) if peers else _typical_of_all(one, measured)
        if typical is not None and noise and _is_rounded(one.value):
            typical = max(typical, median(noise))
        if one.value.status in _BEYOND_NUMBERS:
            found.append((float("inf"), _suspect(one)))
        elif typical is not None and (one.error > _FAR * typical or _is_local(one.value)):
            found.append((one.error / typical, _suspect(one)))
    found.sort(key=lambda pair: -pair[0])
    return grouped([suspect for _, suspect in found])


def _is_rounded(value: Value) -> bool:
    relation = value.relation
    return relation is not None and relation.kind == "rounded" and "clipped" not in relation.parameters


def _is_local(value: Value) -> bool:
    """Return whether a value is wrong in a few places only; rounding changes every place."""
    relation = value.relation
    share = relation.parameters.get("share") if relation is not None and relation.kind == "where" else None
    return share is not None and share < _FEW


def _errors(trial: Trial) -> list[_Measured]:
    container = {id(child): call for call in trial.calls for child in call.children}
    trial = replace(trial, known=trial.known | _customary(trial))
    found = []
    for call in trial.calls:
        if call.side is not None:
            continue
        own = [value for value in call.outputs if trial.enters_clean(call)]
        for value in (*call.arguments, *own):
            odd = not value.agrees and value.status in _BEYOND_NUMBERS
            odd = odd and (value.status is Status.NON_FINITE or value in call.arguments)
            if value.rel_l2 is not None or odd:
                # A value that is right in the forced convention has no error.
                error = 0.0 if value.agrees and value.deliberate else value.rel_l2 or 0.0
                found.append(_Measured(call, container.get(id(call)), value, error))
    return found


def _typical_of_all(one: _Measured, measured: list[_Measured]) -> float | None:
    """Return the typical error for an output without peers: the median of all others, or a larger one of its like."""
    others = [other for other in measured if one.argument is None is other.argument and other.call is not one.call]
    errors = [other.error for other in others if other.error > _LEAST]
    alike = [other.error for other in others if other.role == one.role]
    return max(median(errors), *alike, _LEAST) if len(errors) >= _FEWEST_OTHERS else None


def _customary(trial: Trial) -> set[tuple[str, str]]:
    """Return the (class, argument) pairs that are odd at most calls of the class: a convention, and no error."""
    calls = Counter(call.type for call in trial.calls if call.side is None)
    odd = Counter(
        (call.type, value.name)
        for call in trial.calls
        if call.side is None
        for value in call.arguments
        if not value.is_clean
    )
    return {key for key, count in odd.items() if calls[key[0]] > 1 and count >= _MOST_OF_CLASS * calls[key[0]]}


def _suspect(one: _Measured) -> Suspect:
    if one.argument is None or one.container is None:
        kind = "non_finite" if one.value.status is Status.NON_FINITE else "introduces"
        return Suspect(kind, one.call.module, one.call, value=one.value, has_children=bool(one.call.children))
    return Suspect(
        "miscalls",
        one.container.module,
        one.container,
        argument=one.argument,
        callees=[one.call.module],
        value=one.value,
        callee=one.call,
        has_children=True,
    )


def _peers(one: _Measured, measured: list[_Measured]) -> list[float]:
    """Return the errors of the peers: of the same last name, or where too few share it, of the class."""
    others = [other for other in measured if other.call is not one.call and other.role == one.role]
    same_name = [other.error for other in others if other.name == one.name]
    if same_name and (one.call.children or one.argument is not None or len(same_name) >= _FEWEST_PEERS):
        return same_name
    everybody = [other.error for other in others]
    return everybody if len(everybody) >= _FEWEST_PEERS else []
