"""Which suspects are the cause: heal them, and see what becomes of the final error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qtrace.diagnose import Suspect
from qtrace.investigation.lossy import Lossy
from qtrace.investigation.runner import Runner

# Among many small errors, one that matters takes the final error down visibly when it is healed.
_RELIEVED = 0.9


@dataclass(frozen=True, slots=True)
class Graft:
    """A suspect, and the final error before and after it was healed; `is_cause` says that this explains it."""

    suspect: Suspect
    before: float | None
    after: float | None
    is_cause: bool

    @property
    def effect(self) -> float:
        """Return how much the final error moved, in either direction; infinite where it could be told only after."""
        if self.after is None:
            return 0.0
        return math.inf if self.before is None else abs(self.before - self.after)


def confirmed(runner: Runner, found: Sequence[Suspect]) -> list[Graft]:
    """Return the suspects that matter, the one with the largest effect first.

    They are healed one after the other, in execution order: nothing that comes after one is healed then, so nothing
    hides what it does. One without any effect matters only if it errs on clean arguments, and by more than a factor.
    Those whose effects cancel, as those of a scale that is folded in here and out there, are nobody's fault.
    """
    found = sorted(found, key=lambda suspect: suspect.order)
    lossy = Lossy(runner, found)
    healed = runner.final_after(found, lossy.listeners)
    rest = lossy.rest(found)
    if len(rest) < len(found):
        if not rest:
            return []
        found, healed = rest, runner.final_after(rest)
    if not runner.is_healed(healed):
        found, healed = _mended(runner, found, healed)
    if runner.is_cast and not runner.is_healed(healed):
        # Between two dtypes a visible step may be rounding that fell unluckily; only a cure makes it a fault.
        return []
    errors = [runner.before, *(runner.final_after(found[:count]) for count in range(1, len(found))), healed]
    cancelled = _cancelled(errors, runner.floor)
    grafts = []
    for place, suspect in enumerate(found):
        before, after = errors[place], errors[place + 1]
        has_effect = not _is_same(before, after, runner.floor)
        if place in cancelled or (not has_effect and len(found) > 1 and _is_explained(suspect)):
            continue
        grafts.append(Graft(suspect, before, after, runner.is_healed(healed) and (has_effect or len(found) == 1)))
    if not grafts:
        grafts.append(Graft(found[0], runner.before, healed, False))
    return sorted(grafts, key=lambda graft: (-graft.effect, graft.suspect.order))


def relieving(runner: Runner, found: Sequence[Suspect]) -> list[Graft]:
    """Return, where differing is the rule, the outliers without which the final error is visibly smaller.

    They are healed one upon the other, the one that helps most first: what brings nothing beyond that is none. A
    folded scale makes the error larger.
    """
    alone = [(runner.final_after([suspect]), suspect) for suspect in found]
    helpful = sorted(((after, s) for after, s in alone if after is not None), key=lambda pair: pair[0])
    kept: list[Graft] = []
    reached = runner.before
    for after, suspect in helpful:
        both = after if not kept else runner.final_after([*(graft.suspect for graft in kept), suspect])
        relieves = reached is not None and both is not None and both < _RELIEVED * reached
        if relieves or suspect.kind == "non_finite":
            kept.append(Graft(suspect, reached, both, runner.is_healed(both)))
            reached = both
    return kept


def _mended(runner: Runner, found: list[Suspect], healed: float | None) -> tuple[list[Suspect], float | None]:
    """Return suspects that heal where these do not, and the final error with them healed; else these."""
    plain = [suspect for suspect in found if not _is_related(suspect)]
    if plain and len(plain) < len(found):
        # A factor that somebody undoes further down must not be healed, and is no fault.
        after = runner.final_after(plain)
        if runner.is_healed(after):
            return plain, after
    whole = _at_their_exits(found)
    if whole != found:
        # Where several lines of one forward are wrong, only what it returns can be healed.
        after = runner.final_after(whole)
        if runner.is_healed(after):
            return whole, after
    return found, healed


def _at_their_exits(found: Sequence[Suspect]) -> list[Suspect]:
    """Return the suspects with each container's own faults in one, which is healed at the container's exit."""
    kept: dict[object, Suspect] = {}
    for suspect in found:
        own = suspect.has_children and suspect.kind in ("miscalls", "structure", "introduces")
        first = kept.setdefault(suspect.module if own else id(suspect), suspect)
        if own and first is suspect:
            kept[suspect.module] = replace(suspect, kind="introduces", argument=None, callees=[])
    return list(kept.values())


def _cancelled(errors: Sequence[float | None], floor: float) -> set[int]:
    """Return the places of suspects that undo each other: healed in turn, the final error moves away and comes back.

    `errors[k]` is the final error with the first k suspects healed.
    """
    found: set[int] = set()
    start = 0
    while start < len(errors) - 1:
        back = next(
            (
                end
                for end in range(start + 2, len(errors))
                if _is_same(errors[start], errors[end], floor)
                and not any(_is_same(errors[k], errors[k + 1], floor) for k in range(start, end))
            ),
            None,
        )
        if back is None:
            start += 1
        else:
            found.update(range(start, back))
            start = back
    return found


def _is_same(one: float | None, other: float | None, floor: float) -> bool:
    return one is not None and other is not None and abs(one - other) <= floor


def _is_explained(suspect: Suspect) -> bool:
    """Return whether what was seen there needs no fault: a factor may be undone, an argument not looked at."""
    return _is_related(suspect) or suspect.kind in ("miscalls", "structure")


def _is_related(suspect: Suspect) -> bool:
    """Return whether what is wrong there is no more than a factor or a layout, which may be undone elsewhere."""
    relation = suspect.value.relation if suspect.value is not None else None
    return relation is not None and relation.kind in ("gain", "layout")
