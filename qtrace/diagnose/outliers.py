"""Where every module is a little off, as under quantization: who is off by far more than its peers.

Not being zero is normal there. Peers are the modules of the same role: the same class, and the same last name where
enough of them share it.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from qtrace.diagnose.isolate import Suspect
from qtrace.diagnose.trial import CallRecord, Trial

# A share of modules that differ on clean arguments from which on differing is normal.
_NORMAL = 0.4
_FAR = 6.0
_FEWEST_PEERS = 3


def is_noisy(trial: Trial) -> bool:
    """Return whether differing on clean arguments is the rule among the leaves that were forced."""
    judged = [call for call in _leaves(trial) if call.enters_clean]
    return len(judged) >= _FEWEST_PEERS and sum(call.differs for call in judged) >= _NORMAL * len(judged)


def outliers(trial: Trial) -> list[Suspect]:
    """Return the leaves whose own error is more than six times the median of their peers, worst first."""
    errors = {call: error for call in _leaves(trial) if (error := _error(call)) is not None and call.enters_clean}
    found = []
    for call, error in errors.items():
        peers = _peers(call, errors)
        if len(peers) >= _FEWEST_PEERS and error > _FAR * max(median(peers), 1e-9):
            found.append((error / max(median(peers), 1e-9), call))
    found.sort(key=lambda pair: -pair[0])
    return [Suspect("introduces", call.module, call, value=call.outputs[0]) for _, call in found]


def _peers(call: CallRecord, errors: dict[CallRecord, float]) -> list[float]:
    by_role: dict[bool, list[float]] = defaultdict(list)
    name = call.module.rsplit(".", 1)[-1]
    for other, error in errors.items():
        if other is not call and other.type == call.type:
            by_role[other.module.rsplit(".", 1)[-1] == name].append(error)
    return by_role[True] if len(by_role[True]) >= _FEWEST_PEERS else by_role[True] + by_role[False]


def _leaves(trial: Trial) -> list[CallRecord]:
    return [call for call in trial.calls if call.side is None and not call.children and call.outputs]


def _error(call: CallRecord) -> float | None:
    found = [value.rel_l2 for value in call.outputs if value.rel_l2 is not None]
    return max(found, default=None)
