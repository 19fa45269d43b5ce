"""The calls of both sides over all samples: how many of the reference's were compared, and why others were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from qtrace.engine.driver import CANDIDATE, REFERENCE
from qtrace.engine.model import Model
from qtrace.engine.onepass import Pass
from qtrace.engine.plan import Plan
from qtrace.report.records import Coverage, Unmatched

NAMES = ("reference", "candidate")


class CallCounts:
    """Adds up passes; nothing of a pass is kept but its counts."""

    def __init__(self, plan: Plan, reference: Model) -> None:
        self._plan = plan
        self._reference = reference
        # The root's calls, and those that `only` and `skip` leave out, do not count.
        self._counted = plan.chosen - {""}
        self._made: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._alone: Counter[tuple[int, str, str]] = Counter()
        self._compared = 0
        self._unseen = 0
        self._reasons: Counter[str] = Counter()

    def add(self, done: Pass) -> None:
        """Count the calls of a pass that ended, or was cut short."""
        for side in (REFERENCE, CANDIDATE):
            self._made[side].update(done.calls(side))
        self._alone.update(done.comparison.alone_calls)
        self._compared += done.comparison.compared
        self._reasons.update(done.comparison.reasons)
        for (path, reason), n in done.unseen(REFERENCE).items():
            if path in self._counted:
                self._reasons[reason] += n
                self._unseen += n if reason == "in_thread" else 0

    def coverage(self) -> Coverage:
        """Return how much of the reference was compared."""
        calls = self._unseen + sum(n for path, n in self._made[REFERENCE].items() if path in self._counted)
        reasons = self._reasons.copy()
        alignment = self._plan.alignment
        for path in self._counted & {*alignment.fused, *alignment.split}:
            if not self._runs(alignment.fused.get(path) or alignment.split[path]):
                # Who should compute it is never called, nor what is around it: nothing stands for it.
                continue
            reasons["no_partner"] -= self._made[REFERENCE][path]
            reasons[alignment.why(path)] += self._made[REFERENCE][path]
        reasons = +reasons
        unfinished = calls - self._compared - sum(reasons.values())
        if unfinished > 0:
            reasons["unfinished"] += unfinished
        return Coverage(calls, self._compared, dict(sorted(reasons.items())))

    def _runs(self, path: str) -> bool:
        """Return whether a module of the candidate, or one around it but the root, was called."""
        parts = path.split(".")
        return any(self._made[CANDIDATE][".".join(parts[:length])] for length in range(len(parts), 0, -1))

    def unmatched(self) -> Iterator[Unmatched]:
        """Yield the modules with calls that were compared with nothing, and the reference modules without partner."""
        modules = self._reference.modules
        mine, theirs = self._made
        for path in self._plan.alignment.alone:
            if path in self._plan.chosen and mine[path]:
                yield Unmatched(
                    "reference", path, type(modules[path]).__name__, mine[path], self._plan.alignment.why(path)
                )
        called = {key for path, key in self._plan.candidate_keys.items() if theirs[path]}
        for (side, path, kind), calls in self._alone.items():
            reason = "other_place" if side == CANDIDATE or path in called else "partner_not_called"
            yield Unmatched(NAMES[side], path, kind, calls, reason)
