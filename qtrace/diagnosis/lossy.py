"""Suspects that only compute in a coarser dtype inside, as a norm that reduces its variance in bfloat16 does."""

from __future__ import annotations

from collections.abc import Sequence

from qtrace.diagnosis.isolate import Suspect
from qtrace.diagnosis.runner import Runner
from qtrace.engine.precision import Precision
from qtrace.numerics.tolerance import coarsest_eps, rounding_tolerance

# One such module is a culprit. So many are none: the error is that of the dtype, and grows slowly.
_MANY = 3


class Lossy:
    """Looks, while a pass runs, into the suspects of both sides; `listeners` go into that pass."""

    def __init__(self, runner: Runner, found: Sequence[Suspect]) -> None:
        paths = {module for suspect in found if suspect.kind == "introduces" for module in suspect.modules}
        self._runner = runner
        self.listeners = (
            Precision(paths),
            Precision({path for path, key in runner.plan.candidate_keys.items() if key in paths}),
        )

    def rest(self, found: list[Suspect]) -> list[Suspect]:
        """Return the suspects without those that only lose precision, where many do."""
        lossy = [suspect for suspect in found if self._is_lossy(suspect)]
        if sum(len(suspect.modules) for suspect in lossy) < _MANY:
            return found
        return [suspect for suspect in found if suspect not in lossy]

    def _is_lossy(self, suspect: Suspect) -> bool:
        reference, candidate = self.listeners
        error = suspect.value.error if suspect.value is not None else None
        mine = tuple(reference.dtypes.get(suspect.module, ()))
        answering = self._runner.answering(suspect.module)
        theirs = tuple({dtype for path in answering for dtype in candidate.dtypes.get(path, ())})
        if not mine or not theirs or error is None:
            return False
        return coarsest_eps(theirs) > coarsest_eps(mine) and error <= rounding_tolerance(theirs, 0)
