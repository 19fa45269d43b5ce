"""What the meetings of two sides leave behind: rows, arguments that differ, and calls that were not compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qtrace.lockstep.driver import REFERENCE
from qtrace.lockstep.leaves import argument_leaves, match_arguments, match_leaves
from qtrace.lockstep.pair import Pair, PairComparer, spec_of
from qtrace.probe import Call, Enter, Exit
from qtrace.records import Argument, Relation, Row, Statistics, Status, Verdict
from qtrace.tolerance import rounding_tolerance
from qtrace.tree import is_object, leaves

# Statuses of pairs that say something about a call; a call with none of them was not compared.
_TELLING = (Status.COMPARED, Status.NON_FINITE, Status.CONSTANT_REFERENCE)


@dataclass(slots=True)
class _Pending:
    """A pair whose numbers may still be on an accelerator; they are read when the run is over."""

    call: Call
    name: str
    pair: Pair


@dataclass(slots=True)
class Comparison:
    """Collects one sample's run; `rows()` and `arguments()` give what was found, after the run.

    `compared` counts the reference calls (the root's not) of which an output could be compared, `reasons` why
    others could not.
    """

    sample: int = 0
    selected: Callable[[str], bool] = lambda path: True
    tolerance: float | None = None
    noise_floor: float = 0.0
    progress: Callable[[], None] | None = None
    compared: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    alone_calls: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    _outputs: list[_Pending] = field(default_factory=list)
    _arguments: list[_Pending] = field(default_factory=list)
    _inputs_of: dict[Call, list[Pair]] = field(default_factory=dict)
    # The objects are kept so that their ids stay theirs.
    _handed_on: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)
    _comparer: PairComparer = field(default_factory=PairComparer)

    # What the lockstep tells.

    def entered(self, reference: Enter, candidate: Enter) -> None:
        """Compare the arguments of a call that both sides are about to make."""
        met = []
        for name, mine, theirs in match_arguments(reference.arguments, candidate.arguments):
            if mine is theirs or self._was_handed_on(mine, theirs):
                continue
            for path, leaf, partner in argument_leaves(name, mine, theirs):
                pair = self._comparer.compare(leaf, partner)
                if pair is not None:
                    met.append(pair)
                    self._arguments.append(_Pending(reference.call, path, pair))
        self._inputs_of[reference.call] = met

    def _was_handed_on(self, reference: Any, candidate: Any) -> bool:
        """Return whether both are objects that came in together before, such as a cache that every layer is handed.

        They are compared where they come in first and wherever they are returned, not at every call between.
        """
        if not is_object(reference) or not is_object(candidate):
            return False
        key = (id(reference), id(candidate))
        if key in self._handed_on:
            return True
        self._handed_on[key] = (reference, candidate)
        return False

    def left(self, reference: Exit, candidate: Exit) -> None:
        """Compare what both sides returned from the same call."""
        if reference.error is not None or candidate.error is not None:
            self._uncompared(reference.call, "raised")
            return
        found = self.compare_outputs(reference.call, reference.value, candidate.value)
        if any(pair.measurement is not None and not pair.empty for pair in found):
            self.compared += reference.call.path != ""
        else:
            self._uncompared(reference.call, _reason(found))
        if self.progress is not None:
            self.progress()

    def alone(self, side: int, event: Exit) -> None:
        """Note a call that the other side did not make in the same place."""
        call = event.call
        self.alone_calls[side, call.path, call.type] += 1
        status = Status.REFERENCE_ONLY if side == REFERENCE else Status.CANDIDATE_ONLY
        if side == REFERENCE:
            self._uncompared(call, "alone")
        for path, leaf in leaves(event.value) or [("", None)]:
            spec = spec_of(leaf) if leaf is not None else None
            pair = Pair(spec, None, status=status) if side == REFERENCE else Pair(None, spec, status=status)
            self._outputs.append(_Pending(call, path, pair))

    def passed(self, call: Call, value: Any) -> None:
        """Note a reference call that no module of the candidate answers to."""
        if self.selected(call.path):
            self._uncompared(call, "no_partner")
            for path, leaf in leaves(value) or [("", None)]:
                spec = spec_of(leaf) if leaf is not None else None
                self._outputs.append(_Pending(call, path, Pair(spec, None, status=Status.REFERENCE_ONLY)))

    def compare_outputs(self, call: Call, reference: Any, candidate: Any, *, below: str = "") -> list[Pair]:
        """Compare two outputs leaf by leaf, as rows of the reference's call; paths begin with `below`."""
        found = []
        if isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor):
            matched = [("", reference, candidate)]
        else:
            matched = match_leaves(leaves(reference), leaves(candidate))
        for path, mine, theirs in matched:
            pair = self._comparer.compare(mine, theirs)
            if pair is not None:
                found.append(pair)
                self._outputs.append(_Pending(call, f"{below}.{path}".strip(".") if below else path, pair))
        return found

    # What is left when the run is over.

    def rows(self) -> list[Row]:
        """Return the rows in the reference's execution order."""
        made = [self._row(pending) for pending in self._outputs]
        return sorted(made, key=lambda row: row.order)

    def arguments(self) -> list[Argument]:
        """Return the arguments that differ by more than rounding, in the reference's execution order."""
        made = []
        for pending in self._arguments:
            found = pending.pair.statistics()
            if self._agrees(pending.pair, found, pending.call.entry):
                continue
            call, pair = pending.call, pending.pair
            made.append(
                Argument(
                    module=call.key or "",
                    call=call.index,
                    argument=pending.name,
                    caller=call.caller,
                    status=found.status,
                    order=call.entry,
                    sample=self.sample,
                    reference=pair.reference,
                    candidate=pair.candidate,
                    relation=_with_error(pair.relation, found),
                    peir=found.peir,
                    max=found.max,
                )
            )
        return sorted(made, key=lambda argument: argument.order)

    def _row(self, pending: _Pending) -> Row:
        call, pair = pending.call, pending.pair
        found = pair.statistics()
        incoming = (p.statistics().peir for p in self._inputs_of.get(call, ()))
        related = None
        if pair.relation is not None:
            related = found.peir if pair.relation.kind == "layout" else pair.relation.error
        return Row(
            module=call.key if call.key is not None else call.path,
            call=call.index,
            output=pending.name,
            type=call.type,
            order=call.order,
            status=found.status,
            verdict=self._verdict(pair, found, call.order),
            sample=self.sample,
            reference=pair.reference,
            candidate=pair.candidate,
            relation=_with_error(pair.relation, found),
            mean=found.mean,
            min=found.min,
            max=found.max,
            stddev=found.stddev,
            peir=found.peir,
            sqnr_db=found.sqnr_db,
            cosine=found.cosine,
            rel_l2=found.rel_l2,
            mismatch=found.mismatch,
            non_finite=found.non_finite,
            non_finite_same=pair.non_finite_same,
            peir_related=related,
            peir_in=max((peir for peir in incoming if peir is not None), default=None),
        )

    def _verdict(self, pair: Pair, found: Statistics, order: int) -> Verdict:
        if found.status in (Status.REFERENCE_ONLY, Status.CANDIDATE_ONLY):
            return Verdict.UNMATCHED
        if found.status in (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH):
            return Verdict.STRUCTURE
        if self._agrees(pair, found, order):
            return Verdict.EQUAL if pair.relation is None else Verdict(pair.relation.kind)
        if found.status is Status.NON_FINITE:
            return Verdict.NON_FINITE
        return Verdict.GAIN if pair.relation is not None and pair.relation.kind == "gain" else Verdict.DIFFERS

    def _agrees(self, pair: Pair, found: Statistics, depth: int) -> bool:
        if pair.measurement is None:
            return False
        if pair.relation is not None and pair.relation.kind == "mask":
            error = pair.relation.error
            return error is not None and error <= 1e-3
        if found.status is Status.NON_FINITE and not pair.non_finite_same:
            return False
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = max(rounding_tolerance(pair.dtypes, depth), self.noise_floor)
        return pair.empty or (found.peir is not None and found.peir <= tolerance)

    def _uncompared(self, call: Call, reason: str) -> None:
        if call.path != "":
            self.reasons[reason] += 1


def _with_error(relation: Relation | None, found: Statistics) -> Relation | None:
    """Return the relation with what remains under it; a layout is undone before anything is measured."""
    if relation is not None and relation.kind == "layout":
        return replace(relation, error=found.peir)
    return relation


def _reason(pairs: list[Pair]) -> str:
    if not pairs:
        return "no_tensor"
    statuses = [pair.status for pair in pairs if pair.status is not None]
    return statuses[0].value if statuses else "empty"
