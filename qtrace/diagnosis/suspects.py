"""Chooses the containers to open, and the modules that are suspects once the boundaries inside are forced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from qtrace.diagnosis.trial import CallRecord, Trial, Value
from qtrace.report.records import ONE_SIDED, Status

_FEWEST_REPEATS = 3


@dataclass(slots=True)
class Suspect:
    """A place where a fault would explain the difference; `call` is the call that showed it.

    `kind` is that of the finding. For `miscalls`, `argument` was passed to `callees`. `members` are the further modules
    that show the same.
    """

    kind: str
    module: str
    call: CallRecord
    argument: str | None = None
    callees: list[str] = field(default_factory=list)
    value: Value | None = None
    callee: CallRecord | None = None
    has_children: bool = False
    members: list[str] = field(default_factory=list)
    instead: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the modules at whose entry a graft heals the argument; none where it heals at exits."""
        if self.kind == "miscalls" or self.instead:
            return tuple(self.callees)
        is_single = self.kind == "structure" and self.callee is not None and not self.members
        return (self.callee.module,) if is_single and self.callee is not None else ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Return all the modules that show the fault."""
        return (self.module, *self.members)

    def also_calls(self, callees: Sequence[str]) -> None:
        """Add the callees of another case of the same fault."""
        self.callees.extend(name for name in callees if name not in self.callees)

    @property
    def order(self) -> int:
        """Return the suspect's place in execution order."""
        return self.callee.entry if self.callee is not None else self.call.order


def containers_to_open(trial: Trial, already: Collection[str] = ()) -> set[str]:
    """Return the paths of the containers to open: they differ on clean arguments, and so do those around them.

    A container inside one that was not forced is judged by the error accumulated since the outer one's entry. That is
    enough for the first fault in it. `already` are paths that were opened before: their children's boundaries are
    forced.
    """
    found: set[str] = set()

    def descend(call: CallRecord) -> None:
        if call.side is not None or not call.children:
            return
        if call.module not in already:
            if not (trial.enters_clean(call) and (call.differs or call.raised or not call.ended)):
                return
            found.add(call.module)
        for child in call.children:
            descend(child)

    for root in trial.roots:
        descend(root)
    return found


def suspects(trial: Trial, open_paths: Collection[str]) -> list[Suspect]:
    """Return the suspects, in execution order, of a pass in which the children of `open_paths` were forced."""
    found: list[Suspect] = []
    for call in trial.calls:
        if call.side is None and call.module in open_paths and trial.enters_clean(call):
            found.extend(_inside(trial, call, open_paths))
    # A model without modules inside is its own leaf.
    for root in trial.roots:
        if root.side is None and not root.children and trial.enters_clean(root) and root.differs:
            value = next(value for value in root.outputs if not value.agrees)
            found.append(Suspect("introduces", root.module, root, value=value))
    return grouped(sorted(found, key=lambda suspect: suspect.order))


def vanished(trial: Trial, least: float) -> list[Suspect]:
    """Return the innermost containers that differed on clean arguments, in a pass without forcing, by at least `least`.

    If forcing their children's boundaries makes the difference vanish though no child is at fault, their own code is
    at fault: for example, it keeps an alias that a child writes to, and the forced tensor has no alias.
    """
    open_paths = containers_to_open(trial)
    found = [
        Suspect("introduces", call.module, call, value=next(v for v in call.outputs if not v.agrees), has_children=True)
        for call in trial.calls
        if call.module in open_paths
        and call.differs
        and not any(child.module in open_paths for child in call.children)
        and max((v.error for v in call.outputs if v.error is not None), default=0.0) >= least
    ]
    return grouped(found)


def _inside(trial: Trial, container: CallRecord, open_paths: Collection[str]) -> Iterator[Suspect]:
    """Yield the faults of one open container's children, and of its own code."""
    guilty_outputs: set[int] = set()
    spoiled = False
    own = False
    for child in container.children:
        if child.side is not None:
            continue
        for value in child.arguments:
            if value.agrees or value.status in ONE_SIDED or value.key in guilty_outputs:
                continue
            if not value.forced and spoiled and value.status is Status.COMPARED:
                # It is computed from an earlier child's wrong output, which could not be forced.
                continue
            if not value.forced and (not child.differs or (child.type, value.name) in trial.harmless):
                # It was not forced and did no harm: position_ids that the callee does not use.
                continue
            own = True
            lone = _instead_of(container, child, value)
            yield Suspect(
                "miscalls" if lone is None else "structure",
                container.module,
                container,
                argument=value.name.split(".")[0],
                callees=[child.module if lone is None else lone.module],
                value=value,
                callee=child,
                has_children=True,
            )
        wrong = [value for value in child.outputs if not value.agrees]
        guilty_outputs.update(value.key for value in wrong if not value.forced)
        if wrong and trial.enters_clean(child) and child.module not in open_paths:
            kind = "non_finite" if any(v.status is Status.NON_FINITE for v in wrong) else "introduces"
            yield Suspect(kind, child.module, child, value=wrong[0], has_children=bool(child.children))
        spoiled = spoiled or not child.leaves_clean
    alone = [child.module for child in container.children if child.side is not None]
    wrong = [value for value in container.outputs if not value.agrees]
    if wrong and not spoiled and not own:
        kind = "structure" if alone else "introduces"
        yield Suspect(kind, container.module, container, value=wrong[0], callees=alone, has_children=True)


def _instead_of(container: CallRecord, child: CallRecord, value: Value) -> CallRecord | None:
    """Return the call without a partner whose output the wrong argument should be, or should not be."""
    before = [c for c in container.children if c.order < child.order and c.order <= child.entry]
    last = before[-1] if before else None
    if last is None or last.side is None or value.reference is None:
        return None
    shapes = {spec.shape for v in last.outputs for spec in (v.reference, v.candidate) if spec is not None}
    if value.reference.shape not in shapes:
        return None
    # Calls inside a call without a partner are listed beside it here; the other side lacks the outermost one.
    around = [c for c in before if c.side == last.side and f"{last.module}.".startswith(f"{c.module}.")]
    return min(around, key=lambda c: len(c.module))


def grouped(found: list[Suspect]) -> list[Suspect]:
    """Return the suspects with the cases of one fault merged: one argument of several callees, one module's calls."""
    groups: dict[tuple[str, str, str | None], Suspect] = {}
    for suspect in found:
        first = groups.setdefault((suspect.kind, suspect.module, suspect.argument), suspect)
        if first is not suspect:
            first.also_calls(suspect.callees)
    return list(groups.values())


def repeats(
    found: Sequence[Suspect], trial: Trial, alike: Callable[[Suspect], Hashable] = lambda suspect: None
) -> list[Suspect]:
    """Return the suspects with a fault that repeated layers share merged: of one kind, at one place of each layer.

    It is one fault if at least three layers show it, or all that there are. `alike` returns what else must be the
    same. Two layers of many are two faults.
    """
    groups: dict[Hashable, list[Suspect]] = {}
    for suspect in found:
        key = suspect.kind, role(suspect.module), suspect.argument, suspect.call.type, alike(suspect)
        groups.setdefault(key, []).append(suspect)
    there = Counter(role(module) for module in {call.module for call in trial.calls if call.side is None})
    kept: list[Suspect] = []
    for group in groups.values():
        first, *others = group
        if len(group) >= _FEWEST_REPEATS or (others and len(group) == there[role(first.module)]):
            first.members.extend(other.module for other in others)
            for other in others:
                first.also_calls(other.callees)
            kept.append(first)
        else:
            kept.extend(group)
    return sorted(kept, key=lambda suspect: suspect.order)


def role(path: str) -> str:
    """Return a path with `*` for the layers' numbers.

    >>> role("model.layers.3.mlp")
    'model.layers.*.mlp'
    """
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def innocents(first: Trial) -> set[tuple[str, int]]:
    """Return the calls, by (module, call), with right outputs on clean arguments in a pass without forcing."""
    return {
        (call.module, call.call)
        for call in first.calls
        if call.side is None and call.ended and call.outputs and not call.differs and first.enters_clean(call)
    }


def unaccounted(trial: Trial, first: Trial, open_paths: Collection[str]) -> set[str]:
    """Return the containers for which a pass that forced every boundary leaves open whether they are at fault.

    `trial` is that pass, `first` the one without forcing. Such a container has an error inside, it is not among
    `open_paths`, but the containers around it are: the code between may undo the error, or not. A difference inside a
    call that was right in `first`, on clean arguments, is undone there and does not count.
    """
    innocent = innocents(first)
    harmless = trial.harmless | first.harmless

    def is_wrong(call: CallRecord) -> bool:
        handed = (v for v in call.arguments if (call.type, v.name) not in harmless)
        return call.differs or any(not v.agrees and v.status not in ONE_SIDED for v in handed)

    found: set[str] = set()

    def descend(call: CallRecord, closed: str | None) -> None:
        """Search a call; `closed` is the outermost container around it that is not open."""
        if call.side is not None or (call.module, call.call) in innocent:
            return
        if closed is not None and is_wrong(call):
            found.add(closed)
            return
        within = closed if closed is not None or call.module in open_paths else call.module
        for child in call.children:
            descend(child, within)

    for root in trial.roots:
        descend(root, None)
    return found


def rewritten_inside(trial: Trial, open_paths: Collection[str], converted: Collection[str] = ()) -> set[str]:
    """Return the containers whose children pass a tensor in a convention that hardly comes about by accident.

    `converted` are the calls whose boundaries were already forced in the candidate's convention.
    """
    return {
        call.module
        for call in trial.calls
        if call.module in open_paths and call.side is None
        for child in call.children
        if child.side is None and child.module not in converted
        if any(value.deliberate for value in (*child.arguments, *child.outputs))
    }


def doubtful_arguments(found: Sequence[Suspect], first: Trial) -> frozenset[tuple[str, str]]:
    """Return the arguments, by (class of the callee, name), that may differ without being at fault.

    `found` are the suspects after a pass in which every boundary was forced, `first` is the pass without forcing. Where
    a container's own code seems to be wrong on the reference's arguments, the candidate may take an argument in a form
    of its own (sines with another sign, another kind of mask), and the reference's is what breaks it. Only arguments
    that the caller's code makes are in question: what a call returned is judged as that call's output. An argument that
    a container passes on is in question wherever it goes.
    """
    returned = {value.key for call in first.calls for value in call.outputs}
    calls = {(call.module, call.call): call for call in first.calls if call.side is None}
    keys: set[int] = set()
    for suspect in found:
        for shown in (suspect.call, suspect.callee):
            call = None if shown is None else calls.get((shown.module, shown.call))
            if suspect.has_children and call is not None and call.children:
                keys |= {v.key for v in call.arguments if not v.agrees and v.status not in ONE_SIDED}
    keys -= returned
    return frozenset((call.type, v.name) for call in calls.values() for v in call.arguments if v.key in keys)


def wrongness(trial: Trial, apart: Collection[tuple[str, str]] = ()) -> tuple[int, float]:
    """Return how many values come out wrong inside the containers of a pass, and the sum of their errors up to 1 each.

    The arguments `apart`, by (class of the callee, name), do not count.
    """
    types = {call.module: call.type for call in trial.calls}
    wrong = {
        found
        for path in {call.module for call in trial.calls if call.children and call.side is None}
        for found in wrong_inside(trial, path)
        if len(found) < 2 or (types[found[0]], found[1]) not in apart
    }
    errors = 0.0
    for call in trial.calls:
        if call.side is None and (call.module,) in wrong:
            errors += max(
                (min(v.error, 1.0) if v.error is not None else 1.0 for v in call.outputs if not v.agrees), default=0.0
            )
        for value in call.arguments:
            if (call.module, value.name) in wrong and not value.agrees:
                errors += min(value.error, 1.0) if value.error is not None else 1.0
    return len(wrong), errors


def error_inside(trial: Trial, path: str) -> float:
    """Return the sum of the relative L2 errors that a container's children make on clean arguments.

    It serves where differing is the rule, so that counting errors is no use. A value that is right in the forced
    convention adds none.
    """
    return sum(
        value.rel_l2 or 0.0
        for call in trial.calls
        if call.module == path and call.side is None
        for child in call.children
        if child.side is None and trial.enters_clean(child)
        for value in child.outputs
        if not (value.agrees and value.deliberate)
    )


def wrong_inside(trial: Trial, path: str) -> set[tuple[str, ...]]:
    """Return the errors in a container: arguments of its children, their outputs on clean arguments, its own output.

    Consequences of a child whose output is not clean are left out: wrong arguments after it, and the container's own
    output.
    """
    found: set[tuple[str, ...]] = set()
    for call in trial.calls:
        if call.module != path or call.side is not None:
            continue
        spoiled = False
        for child in call.children:
            if child.side is not None:
                continue
            wrong = (
                value
                for value in child.arguments
                if not value.agrees and value.status not in ONE_SIDED and (value.forced or not spoiled)
            )
            found.update((child.module, value.name) for value in wrong)
            if child.differs and trial.enters_clean(child):
                found.add((child.module,))
            spoiled = spoiled or not child.leaves_clean
        # Nobody is left to undo a convention in what the root returns.
        is_last = not call.module
        if not spoiled and any(not (value.agrees or (value.deliberate and not is_last)) for value in call.outputs):
            found.add((call.module,))
    return found
