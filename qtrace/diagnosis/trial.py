"""Holds the result of one pass, as a tree of calls that is judged without torch, and gives each row its verdict."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from qtrace.report.records import ONE_SIDED, Finding, Relation, Status, TensorSpec, Verdict

_UNTOLD = (Status.NON_FINITE, Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH)
# An error that leaves so many times larger than it came in was amplified, not just passed on.
_AMPLIFIED = 10.0


@dataclass(frozen=True, slots=True)
class Value:
    """One argument or output of one call: whether it agrees, and whether the reference's was forced on the candidate.

    `deliberate` says that the candidate holds the reference's values in a convention that hardly comes about by
    accident, such as rotated or reordered channels.
    `key` identifies the pair of tensors: an argument with the key of an output is that output, passed on.
    `error` is the PEIR; under a relation that holds, such as another fill of a mask, it is the rest. `related` is the
    rest under any verified relation.
    """

    name: str
    agrees: bool
    forced: bool = False
    status: Status = Status.COMPARED
    error: float | None = None
    related: float | None = None
    rel_l2: float | None = None
    relation: Relation | None = None
    deliberate: bool = False
    reference: TensorSpec | None = None
    candidate: TensorSpec | None = None
    key: int = 0

    @property
    def is_gain(self) -> bool:
        """Return whether the value differs by one factor only."""
        return self.relation is not None and self.relation.kind == "gain"

    @property
    def is_clean(self) -> bool:
        """Return whether the candidate continued with the reference's value."""
        return self.agrees or self.forced


@dataclass(frozen=True, slots=True, eq=False)
class CallRecord:
    """One call; `side` is None where both sides made it, else the side that made it alone.

    `entry` and `order` are its place among the reference's entries and exits, `candidate_entry` that among the
    candidate's entries.
    """

    module: str
    type: str
    call: int
    entry: int
    order: int
    arguments: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    side: str | None = None
    has_data: bool = False
    raised: bool = False
    ended: bool = True
    sites: tuple[tuple[str, int, str] | None, tuple[str, int, str] | None] = (None, None)
    candidate_entry: int | None = None
    children: list[CallRecord] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Return whether an output does not agree."""
        return any(not value.agrees for value in self.outputs)

    @property
    def leaves_clean(self) -> bool:
        """Return whether the candidate continued with the reference's value of every output."""
        return all(value.is_clean for value in self.outputs)


@dataclass(frozen=True)
class Trial:
    """One pass over one sample, by its top calls.

    `known` are (class, argument) pairs of which an earlier pass showed that a difference does no harm; see `harmless`.
    """

    roots: tuple[CallRecord, ...]
    known: frozenset[tuple[str, str]] = frozenset()

    @cached_property
    def calls(self) -> tuple[CallRecord, ...]:
        """Return all calls, each before those inside it."""
        found: list[CallRecord] = []

        def walk(call: CallRecord) -> Iterator[CallRecord]:
            yield call
            for child in call.children:
                yield from walk(child)

        for root in self.roots:
            found.extend(walk(root))
        return tuple(found)

    @cached_property
    def harmless(self) -> frozenset[tuple[str, str]]:
        """Return the (class, argument) pairs that differed at some call while the output of that call agreed.

        A wrapper may pass its layers position_ids that the reference leaves at None, or sines with another sign. An
        argument that does no harm to one layer is no fault in another. Nor is it a fault of the modules around, which
        only pass on the very same tensors.
        """
        # A difference that the callee's weights undo had an effect: elsewhere no module may undo it.
        undone = {
            value.key
            for call in self.calls
            if call.side is None and call.has_data and not call.children and call.outputs and not call.differs
            for value in call.arguments
            if not value.is_clean and _is_floating(value)
        }
        odd = [
            (call, value)
            for call in self.calls
            if call.side is None and call.outputs
            for value in call.arguments
            if not value.is_clean and not value.deliberate and value.key not in undone
        ]
        found = {(call.type, value.name) for call, value in odd if not call.differs}
        handed_on = {
            (id(call), value.key) for call, value in odd if any(value.key in _keys(child) for child in call.children)
        }
        used = [(call, value) for call, value in odd if (id(call), value.key) not in handed_on]
        fine = {value.key for call, value in used if not call.differs}
        fine -= {value.key for call, value in used if call.differs and _takes_only(call, value.key)}
        return self.known | found | {(call.type, value.name) for call, value in odd if value.key in fine}

    # An argument of one side alone makes a call neither clean nor unclean: its module computes what the other side's
    # receives, or has no use for it. What is inside shows whether that matters.
    def enters_clean(self, call: CallRecord) -> bool:
        """Return whether every argument that can matter was the reference's; one passed by one side only cannot."""
        return all(
            value.is_clean or value.status in ONE_SIDED or (call.type, value.name) in self.harmless
            for value in call.arguments
        )

    def takes_right(self, call: CallRecord) -> bool:
        """Return whether every argument that can matter came out right by itself, forced or not."""
        return all(
            value.agrees or value.status in ONE_SIDED or (call.type, value.name) in self.harmless
            for value in call.arguments
        )

    def final_error(self, read: Collection[str] = ()) -> float | None:
        """Return the largest error among the root's outputs, None if it returned nothing that was compared.

        It is infinite if an output differs in a way that no number measures (NaN, another shape, missing). An output
        that was forced at the root's own exit has no error left. `read` are the names of the outputs that count; all do
        if it is empty.
        """
        values = [value for root in self.roots if not root.module for value in root.outputs]
        counted = [v for v in values if v.status not in ONE_SIDED and (not read or v.name in read)]
        return max(map(_severity, counted), default=None)

    def read_outputs(self) -> frozenset[str]:
        """Return the names of the root's outputs by which a run is judged: those that differ, the outermost alone.

        People read logits, not the keys and values of the cache beside them; a cache counts where nothing else differs.
        """
        wrong = [v.name for root in self.roots if not root.module for v in root.outputs if not v.agrees]
        depth = min((name.count(".") for name in wrong), default=0)
        return frozenset(name for name in wrong if name.count(".") == depth)


def _severity(value: Value) -> float:
    if value.forced:
        return 0.0
    if value.agrees:
        return value.error or 0.0
    told = value.rel_l2 if value.status is Status.CONSTANT_REFERENCE else value.error
    return math.inf if told is None or value.status in _UNTOLD else told


def _is_floating(value: Value) -> bool:
    dtypes = [spec.dtype or "" if spec is not None else "" for spec in (value.reference, value.candidate)]
    return value.status is Status.COMPARED and all("float" in dtype for dtype in dtypes)


def _keys(call: CallRecord) -> set[int]:
    return {value.key for value in call.arguments}


def _takes_only(call: CallRecord, key: int) -> bool:
    """Return whether every other argument of a call is clean, so that this one makes the call differ."""
    return all(value.is_clean or value.key == key for value in call.arguments)


def spliced(trial: Trial, again: Trial) -> Trial:
    """Return `trial` with the call that `again` ran by itself, at the place where the whole models made it.

    The models call that module once. Its calls keep their place in execution order. The keys of its arguments and
    outputs become those of `trial`, so that both are recognised where they are passed on.
    """
    (call,) = again.roots
    before = next(one for one in trial.calls if one.module == call.module and one.side is None)
    came_in = {value.name: value.key for value in before.arguments}
    went_out = {value.name: value.key for value in before.outputs}
    keys = {value.key: went_out.get(value.name, value.key) for value in call.outputs}
    keys |= {value.key: came_in.get(value.name, value.key) for value in call.arguments}

    def numbered(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(value, key=keys.get(value.key, value.key)) for value in values)

    def placed(one: CallRecord) -> CallRecord:
        return replace(
            one,
            entry=one.entry + before.entry,
            order=one.order + before.entry,
            arguments=numbered(one.arguments),
            outputs=numbered(one.outputs),
            children=[placed(child) for child in one.children],
        )

    def walked(one: CallRecord) -> CallRecord:
        if one is before:
            return replace(placed(call), sites=before.sites)
        return replace(one, children=[walked(child) for child in one.children])

    return Trial(tuple(walked(root) for root in trial.roots), trial.known)


Key = tuple[str, int, str]


def verdicts(
    trial: Trial, findings: Sequence[Finding] = (), made: Mapping[Key, bool] | None = None
) -> dict[Key, Verdict]:
    """Return the verdict of each output that differs, by (module, call, output).

    Args:
        trial: the pass without forcing.
        findings: the named faults: the rows of their modules are `introduced`, those of their callees `miscalled`.
        made: whether an output shows an error of its own on the reference's arguments, where that was measured.
            Without it a call is judged by its arguments: if they are clean and no module inside differs, the call
            made the error.

    A difference that an enclosing call undoes is `absorbed`, whatever made it. A difference that is only a factor is
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
    """Return the verdict of an output that differs and belongs to no finding."""
    own = made.get((call.module, call.call, value.name))
    if own:
        return Verdict.INTRODUCED
    if trial.enters_clean(call) and any(child.side is None and child.differs for child in call.children):
        # The error came from a module inside.
        return Verdict.INHERITED
    if own is None and trial.enters_clean(call):
        return Verdict.INTRODUCED
    if own is None and parent is not None and _is_misled(trial, call, parent):
        return Verdict.MISCALLED
    wrong = [value.error for value in call.arguments if not value.agrees and value.status is not Status.CANDIDATE_ONLY]
    received = max((error for error in wrong if error is not None), default=0.0)
    # Beside an argument of another kind the incoming error has no size.
    if received and None not in wrong and value.error is not None and value.error > _AMPLIFIED * received:
        return Verdict.AMPLIFIED
    return Verdict.INHERITED


def _is_misled(trial: Trial, call: CallRecord, parent: CallRecord) -> bool:
    """Return whether the caller, right until then, passed this call another argument."""
    before: Collection[CallRecord] = [c for c in parent.children if c.side is None and c.order < call.order]
    return trial.enters_clean(parent) and not any(child.differs for child in before if child is not call)
