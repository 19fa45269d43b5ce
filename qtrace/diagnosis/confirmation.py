"""Confirmation by graft (activation patching): heal suspects at their boundaries, and measure the final error."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qtrace.diagnosis.runner import Runner
from qtrace.diagnosis.suspects import Suspect
from qtrace.diagnosis.trial import Value
from qtrace.engine.events import Bound, Call
from qtrace.numerics.tolerance import coarsest_eps, rounding_tolerance
from qtrace.report.records import Status, is_improved

# One module that loses precision is at fault. So many are not: the error is that of the dtype, and grows slowly.
_MANY = 3
# Up to this error of its own, half precision may be the only reason; its expected rounding is capped at 0.02.
_UNLUCKY = 0.05
# What is suspected for another reason than its error must take the final error down by this factor.
_MATTERS = 0.7


class Precision:
    """A listener that notes which floating dtypes the operators of chosen modules return.

    `dtypes` holds them by path, in the side's own names. Only calls of these `paths` are examined, one at a time.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self.dtypes: dict[str, set[torch.dtype]] = {}
        self._paths = paths
        self._call: Call | None = None
        self._mode: _DtypesSeen | None = None

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Begin to note the dtypes of a chosen call."""
        if call.path in self._paths and self._mode is None:
            self._call, self._mode = call, _DtypesSeen(self.dtypes.setdefault(call.path, set()))
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """End the notes of the call that was begun."""
        if self._mode is not None and self._call is call:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._call = self._mode = None


class _DtypesSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: set[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                self._seen.add(one.dtype)
        return value


class Lossy:
    """Examines the suspects of both sides while a pass runs; `listeners` are passed to that pass."""

    def __init__(self, runner: Runner, found: Sequence[Suspect]) -> None:
        paths = {module for suspect in found if suspect.kind == "introduces" for module in suspect.modules}
        self._runner = runner
        self.listeners = (
            Precision(paths),
            Precision({path for path, key in runner.plan.candidate_keys.items() if key in paths}),
        )

    def rest(self, found: list[Suspect]) -> list[Suspect]:
        """Return the suspects; where many only lose precision, without those."""
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


@dataclass(frozen=True, slots=True)
class Graft:
    """A suspect, and the final error before and after it was healed (elsewhere: activation patching).

    `is_cause` says that the suspect explains the final error. `gain` is how far the error fell below the least that
    was reached before; see `_gains`.
    """

    suspect: Suspect
    before: float | None
    after: float | None
    is_cause: bool
    gain: float = 0.0


def confirm(runner: Runner, found: Sequence[Suspect], repeated: Collection[str] = ()) -> list[Graft]:
    """Return the suspects that matter, the one with the largest effect first.

    They are healed one after the other, in execution order. When one is healed, no later one is healed yet, so none
    hides its effect. A suspect without any effect matters only if it errs on clean arguments, and by more than a
    factor. Suspects whose effects cancel are no fault: a scale folded in at one and out at another. `repeated` are the
    modules that are called more than once.
    """
    found = _without_excused(runner, sorted(found, key=lambda suspect: suspect.order))
    if runner.is_coarse:
        found = [suspect for suspect in found if not _may_be_rounding(suspect)]
        if not found:
            return []
    lossy = Lossy(runner, found)
    healed = runner.final_after(found, lossy.listeners)
    rest = lossy.rest(found)
    if len(rest) < len(found):
        if not rest:
            return []
        found, healed = rest, runner.final_after(rest)
    if not runner.is_healed(healed):
        found, healed = _mended(runner, found, healed)
    if runner.is_coarse and not runner.is_healed(healed):
        # Between two dtypes a visible step may be unlucky rounding; it is a fault only if healing it cures the output.
        return []
    errors = [runner.before, *(runner.final_after(found[:count]) for count in range(1, len(found))), healed]
    enough = next((count for count in range(1, len(found)) if _is_right(errors[count], runner.floor)), len(found))
    if not any(module in repeated for one in found[:enough] for module in one.modules):
        # All is right with these healed, and nothing that comes after them was: the later ones change nothing.
        found, errors = found[:enough], errors[: enough + 1]
        healed = errors[-1]
    cancelled = _cancelled(errors, runner.floor)
    together = {place for place in cancelled if _is_of_one_call(found, place, cancelled)}
    gains = _gains(errors, found, together)
    grafts = []
    for place, suspect in enumerate(found):
        before, after = errors[place], errors[place + 1]
        has_effect = not _is_same(before, after, runner.floor)
        if (place in cancelled and (_is_convention(suspect) or place in together)) or (
            not has_effect and len(found) > 1 and _is_explained(suspect)
        ):
            continue
        # The final error is right before this one is healed. Only an earlier one that runs again later may hide it.
        is_right = place > 0 and before is not None and before <= runner.floor and not has_effect
        if is_right and not any(module in repeated for other in found[:place] for module in other.modules):
            continue
        is_cause = runner.is_healed(healed) and (has_effect or len(found) == 1)
        if is_cause and not is_improved(before, after):
            # Behind larger errors its own step is no improvement; without it, the others must leave one. Those that
            # come later may hide it, though: only what may need no fault is left out then.
            without = runner.final_after([one for one in found if one is not suspect])
            is_worse = before is not None and after is not None and after >= before
            is_needless = without is not None and healed is not None and without <= healed + runner.floor
            if is_worse and is_needless and _is_convention(suspect):
                continue
            if not is_needless:
                before, after = without, healed
        grafts.append(Graft(suspect, before, after, is_cause and _proves(runner, suspect, before, after), gains[place]))
    if not grafts:
        grafts.append(Graft(found[0], runner.before, healed, False))
    return sorted(grafts, key=lambda graft: (-graft.gain, graft.suspect.order))


def outliers_that_matter(runner: Runner, found: Sequence[Suspect], hinted: Sequence[Suspect] = ()) -> list[Graft]:
    """Return, where differing is the rule, the outliers without which the final error is visibly smaller.

    They are healed cumulatively, in execution order: healed by itself, a late one would receive the right result of
    all modules before it, and get the credit for them. Healing a folded scale makes the error larger. Those `hinted` at
    do not stand out by their own errors, and must matter more.
    """
    kept: list[Graft] = []
    reached = runner.before
    found = sorted(found, key=lambda suspect: suspect.order)
    for suspect in found:
        after = runner.final_after([*(graft.suspect for graft in kept), suspect])
        matters = _matters(runner, suspect, after, reached, hinted)
        if matters or suspect.kind == "non_finite":
            kept.append(Graft(suspect, reached, after, runner.is_healed(after), _fallen(reached, after)))
            reached = after
    left = len(found) - len(kept)
    if left > 1 and runner.is_relieved(whole := runner.final_after(found), reached):
        kept = _only_together(runner, found, whole, hinted) or kept
    return sorted(kept, key=lambda graft: (-graft.gain, graft.suspect.order))


def _matters(
    runner: Runner, suspect: Suspect, after: float | None, before: float | None, hinted: Sequence[Suspect]
) -> bool:
    """Return whether the final error falls with a suspect healed; by more, where it does not stand out by its own."""
    if suspect not in hinted:
        return runner.is_relieved(after, before)
    return after is not None and before is not None and after <= _MATTERS * before


def _only_together(
    runner: Runner, found: Sequence[Suspect], whole: float | None, hinted: Sequence[Suspect]
) -> list[Graft]:
    """Return the suspects without which healing all others helps less: the largest error is that of any one of them.

    `whole` is the final error with all of them healed.
    """
    kept: list[Graft] = []
    for suspect in found:
        without = runner.final_after([one for one in found if one is not suspect])
        if _matters(runner, suspect, whole, without, hinted):
            kept.append(Graft(suspect, without, whole, runner.is_healed(whole), _fallen(without, whole)))
    return kept


def _proves(runner: Runner, suspect: Suspect, before: float | None, after: float | None) -> bool:
    """Return whether a graft that heals says that this is the place.

    It must lower the final error, and its boundary must not be the whole model's: that heals whatever is wrong inside.
    """
    return is_improved(before, after) and (bool(suspect.entries) or not runner.is_whole(suspect.module))


def _fallen(before: float | None, after: float | None) -> float:
    if before is None or after is None:
        return 0.0
    return math.inf if math.isinf(before) and not math.isinf(after) else before - after


def _mended(runner: Runner, found: list[Suspect], healed: float | None) -> tuple[list[Suspect], float | None]:
    """Return other suspects that heal the final error, and that error; without such, `found` and `healed`."""
    plain = [suspect for suspect in found if not _is_related(suspect)]
    if plain and len(plain) < len(found):
        # A factor that a later module undoes must not be healed, and is no fault.
        after = runner.final_after(plain)
        if runner.is_healed(after):
            return plain, after
    whole = _at_their_exits(found)
    if whole != found:
        # Where several lines of one forward are wrong, only its output can be healed.
        after = runner.final_after(whole)
        if runner.is_healed(after):
            return whole, after
    return found, healed


def _without_excused(runner: Runner, found: list[Suspect]) -> list[Suspect]:
    """Return the suspects without containers whose own code is right once one child in them is healed.

    What a container's own code makes of its children's outputs looks wrong in a pass that forces these outputs, if the
    candidate keeps some of them in a convention of its own. A child that is wrong on right arguments counts against its
    container, and against the other suspects beside it, where healing it alone makes the container come out right.
    """
    kept = list(found)
    for container in [one for one in found if one.has_children]:
        children = [one for one in kept if _is_around(container, one) and not one.has_children]
        for child in children if container in kept else ():
            if runner.comes_out_right(container, child):
                excused = [container, *(one for one in children if one is not child)]
                kept = [one for one in kept if one not in excused]
                break
    # A container whose own code is wrong on an argument in a form of the candidate's own may be right, and the argument
    # wrong in that form: the module that passes it is named.
    misled = [one for one in kept if one.has_children and _takes(one, runner.doubtful)]
    if misled and runner.aside:
        others = sorted([*runner.aside, *(one for one in kept if one not in misled)], key=lambda one: one.order)
        # Positions counted from another number tell the container the same: that it is wrong on them is its own fault,
        # unless the reference's positions heal the candidate.
        if not all(_tells_the_same(one, runner.doubtful) for one in misled):
            return others
        if runner.is_healed(runner.final_after(others)):
            return others
    return kept


def _takes(suspect: Suspect, arguments: Collection[tuple[str, str]]) -> list[Value]:
    """Return which of these arguments, (class, name), a suspect receives with another value than the reference's."""
    call = suspect.call
    return [value for value in call.arguments if (call.type, value.name) in arguments and not value.agrees]


def _tells_the_same(suspect: Suspect, arguments: Collection[tuple[str, str]]) -> bool:
    """Return whether these arguments of a suspect are the reference's plus one number, as their ranges show."""
    return all(map(_is_counted_from_elsewhere, _takes(suspect, arguments)))


def _is_counted_from_elsewhere(value: Value) -> bool:
    mine, theirs = value.reference, value.candidate
    if mine is None or theirs is None:
        return False
    if mine.type in ("int", "float") and theirs.type in ("int", "float"):
        return True
    if mine.min is None or mine.max is None or theirs.min is None or theirs.max is None:
        return False
    return (mine.dtype or "").startswith(("int", "uint")) and theirs.min - mine.min == theirs.max - mine.max


def _at_their_exits(found: Sequence[Suspect]) -> list[Suspect]:
    """Return the suspects with each container's own faults merged into one, which is healed at the container's exit."""
    kept: dict[object, Suspect] = {}
    for suspect in found:
        if not (suspect.has_children and suspect.kind in ("miscalls", "structure", "introduces")):
            kept[id(suspect)] = suspect
        elif suspect.module not in kept:
            kept[suspect.module] = replace(suspect, kind="introduces", argument=None, callees=[])
    return sorted(kept.values(), key=lambda suspect: suspect.order)


def _gains(errors: Sequence[float | None], found: Sequence[Suspect], left_out: Collection[int] = ()) -> list[float]:
    """Return for each suspect how far healing it took the final error below the least reached before.

    The suspects at the places `left_out` cancel each other, and gain nothing.

    A scale may be folded in at one suspect and out at another. Healing one half breaks the model, and healing the
    other half mends it: that is no gain of the second one. The gain of such a stretch counts for its first suspect
    that is wrong by more than a convention, or for the container around that one: its own code may undo the fold.
    """
    gains = [0.0] * len(found)
    least, start = errors[0], 0
    for place, after in enumerate(errors[1:]):
        if (place == start and after == least) or place in left_out:
            start = place + 1
        if after is None or (least is not None and not after < least):
            continue
        stretch = range(start, place + 1)
        owner = next((k for k in stretch if not _is_convention(found[k])), start)
        owner = next((k for k in stretch if _is_around(found[k], found[owner])), owner)
        gains[owner] += math.inf if least is None or math.isinf(least) else least - after
        least, start = after, place + 1
    return gains


def _is_around(container: Suspect, inner: Suspect) -> bool:
    prefix = f"{container.module}." if container.module else ""
    return container.has_children and container.module != inner.module and inner.module.startswith(prefix)


def _cancelled(errors: Sequence[float | None], floor: float) -> set[int]:
    """Return the places of suspects that undo each other: as they are healed, the final error changes and comes back.

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


def _is_of_one_call(found: Sequence[Suspect], place: int, cancelled: Collection[int]) -> bool:
    """Return whether a wrong argument is cancelled by another of the same call, such as edges and their weights.

    Two arguments reordered alike are right as a whole.
    """
    one = found[place]
    others = (found[other] for other in cancelled if other != place)
    return one.kind == "miscalls" and any(
        other.kind == "miscalls" and other.module == one.module and other.callees == one.callees for other in others
    )


def _is_right(error: float | None, floor: float) -> bool:
    return error is not None and error <= floor


def _is_same(one: float | None, other: float | None, floor: float) -> bool:
    if one is None or other is None:
        return one is other
    return one == other or abs(one - other) <= floor


def _may_be_rounding(suspect: Suspect) -> bool:
    """Return whether unlucky or amplified rounding in half precision explains the suspect's error."""
    value = suspect.value
    if value is None or value.status is not Status.COMPARED or value.error is None:
        return False
    return value.error <= _UNLUCKY


def _is_explained(suspect: Suspect) -> bool:
    """Return whether what was seen there needs no fault, if healing it changes nothing.

    A factor may be undone, an argument not looked at, and a container's own code seem wrong for what was forced in it.
    """
    return _is_convention(suspect) or suspect.kind in ("miscalls", "structure") or suspect.has_children


def _is_convention(suspect: Suspect) -> bool:
    """Return whether the candidate holds the reference's values at the suspect, only in another convention."""
    return _is_related(suspect) or (suspect.value is not None and suspect.value.deliberate)


def _is_related(suspect: Suspect) -> bool:
    """Return whether the difference is only a factor or a layout, which may be undone elsewhere."""
    relation = suspect.value.relation if suspect.value is not None else None
    return relation is not None and relation.kind in ("gain", "layout")
