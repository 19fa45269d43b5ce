"""Answers the prompt's commands: shows a stop and both sides, and forces the reference's tensors."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

import torch

from qtrace.debug.breakpoints import ENTER, EXIT
from qtrace.debug.party import Party
from qtrace.debug.stop import NAMES, Refusal, Stop
from qtrace.debug.values import FoundValue, columns, described, difference, judged
from qtrace.engine.comparison import LOCAL_DEPTH, Comparison
from qtrace.engine.events import Enter, Exit, Replacement
from qtrace.engine.forcing import Forcing, LeafPairs
from qtrace.engine.lockstep import CANDIDATE, REFERENCE
from qtrace.engine.pair import Pair
from qtrace.report.text import number
from qtrace.traces.stored_side import StoredError

MOST_SHOWN = 5


class Stack(Protocol):
    """The place where a side has stopped."""

    def place(self) -> str:
        """Return the place where the side has stopped."""

    def entries(self) -> tuple[list[str], int]:
        """Return the lines of its stack, the outermost first, and the place of the selected one."""


def heading(stop: Stop, reason: str, stacks: Sequence[Stack]) -> Iterator[str]:
    """Yield the place of both sides, the reason of the stop, and the values that differ there."""
    call = stop.call
    which = f", call #{call.index}" if call.index else ""
    now = "is about to run" if stop.event == ENTER else "has returned"
    yield ""
    yield f"{call.path or '<root>'} ({call.type}{which}) {now}"
    error = stop.error()
    if error is not None:
        side, raised = error
        kind, said = raised.told() if isinstance(raised, StoredError) else (type(raised).__name__, str(raised))
        yield f"the {side} raised {kind} in it: {said}"
    rows = [("stopped by", reason), *((side, stack.place()) for side, stack in zip(NAMES, stacks, strict=True))]
    differing = stop.differing()
    for name, pair in differing[:MOST_SHOWN]:
        peir = pair.statistics().peir
        told = f"PEIR {number(peir)}" if peir is not None else f"{pair.reference} against {pair.candidate}"
        rows.append(("differs", f"{name or 'output'}: {told}"))
    yield from columns(rows)
    if len(differing) > MOST_SHOWN:
        yield f"and {len(differing) - MOST_SHOWN} more differ; `{'args' if stop.event == ENTER else 'out'}` shows all"


def compared(stop: Stop) -> Iterator[str]:
    """Yield the leaves of the arguments or outputs: each value on both sides, and the distance of the two."""
    empty = True
    for name, mine, theirs, pair in stop.compared():
        if mine is None and theirs is None:
            continue
        empty = False
        yield name or "output"
        rows = [(f"  {side}", *described(leaf)) for side, leaf in zip(NAMES, (mine, theirs), strict=True)]
        yield from columns(rows)
        lines = list(judged(pair, mine, theirs, agrees=lambda pair, name=name: stop.agrees(name, pair)))  # type: ignore[misc]
        yield from (f"  {line}" for line in lines)
    error = stop.error()
    if error is not None:
        yield f"nothing is compared: the {error[0]} raised in this call"
    elif empty:
        yield "nothing is passed" if stop.event == ENTER else "nothing was returned"


def rows(stop: Stop) -> Iterator[str]:
    """Yield every number of the rows of a call that has returned."""
    found = stop.comparison.rows_of(stop.met)
    for row in found:
        yield f"{row.module or '<root>'}#{row.call} {row.output or 'output'}  {row.reference} / {row.candidate}"
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        shown = {name: value for name, value in values.items() if name not in _IN_THE_LINE and value is not None}
        yield from columns([(f"  {name}", _word(value)) for name, value in shown.items()])
    if not found:
        yield "no row: nothing that was returned can be compared"


def side_by_side(stacks: Sequence[Stack]) -> Iterator[str]:
    """Yield both stacks, the innermost frames in one line, the selected ones marked."""
    width = (shutil.get_terminal_size().columns - 3) // 2
    texts = []
    for stack in stacks:
        entries, selected = stack.entries()
        marks = ["> " if index == selected else "  " for index in range(len(entries))]
        texts.append([mark + _cut(entry, width - 2) for mark, entry in zip(marks, entries, strict=True)])
    yield f"{NAMES[0]:<{width}}   {NAMES[1]}"
    pairs = list(zip_longest(*(reversed(text) for text in texts), fillvalue=""))
    for reference, candidate in reversed(pairs):
        yield f"{reference:<{width}} | {candidate}".rstrip()


_IN_THE_LINE = ("module", "call", "output", "reference", "candidate")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _word(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return str(getattr(value, "value", value))


_MOST_TOLD = 3


@dataclass(slots=True)
class Handover:
    """The forced tensors of a run: at chosen boundaries, and wherever the candidate passes the same tensors on.

    `notes` names the places. `healed` are the (reference path, event) at which tensors are forced every time.
    """

    healed: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    # Both tensors are kept, so that their ids are not reused.
    _forced: dict[tuple[int, int], tuple[Any, Any, tuple[int, int]]] = field(default_factory=dict)

    def end(self) -> None:
        """Release the tensors of a pass."""
        self._forced.clear()

    def warnings(self) -> list[str]:
        """Return the warning about forced tensors, if there are any."""
        if not self.notes:
            return []
        rest = len(self.notes) - _MOST_TOLD
        some = "; ".join(self.notes[:_MOST_TOLD]) + (f"; and {rest} more" if rest > 0 else "")
        return [f"the candidate received the reference's {some}: what follows is not its own result"]

    def here(self, stop: Stop, *, heals: bool) -> Replacement | None:
        """Return the tensors that the candidate continues with, None where they were written in place.

        Raises `Refusal` where no tensor is forced.
        """
        pairs: LeafPairs = [(*leaves, pair) for *leaves, pair in stop.compared() if pair is not None]
        differing = [one for one in pairs if not _is_equal(one)]
        if not differing:
            raise Refusal("nothing to hand over: the candidate holds the same values")
        # For example of a trace that was captured on the meta device.
        pairs = [one for one in pairs if not (isinstance(one[1], torch.Tensor) and one[1].is_meta)]
        reply = self._replacement(stop, pairs)
        handed = [name for name, *_ in differing if stop.mark + name in stop.met.forced]
        if not handed:
            names = ", ".join(name or "output" for name, *_ in differing)
            raise Refusal(
                f"nothing of {names} could be passed to the candidate: no layout is known in which it would take them"
            )
        off = [name for name, _, _, pair in differing if name in handed and not stop.agrees(name, pair)]
        self._note(stop, off or handed)
        if stop.event == ENTER:
            for name, mine, theirs, _ in differing:
                if name in handed and theirs is not None:
                    self._forced[id(mine), id(theirs)] = mine, theirs, (_version(mine), _version(theirs))
        if heals:
            self.healed.add((stop.call.path, stop.event))
        return reply

    def again(self, stop: Stop) -> Replacement | None:
        """Return the replacement at a later boundary, if this one is healed or receives the same tensors."""
        if (stop.call.path, stop.event) in self.healed:
            try:
                return self.here(stop, heals=False)
            except Refusal:
                return None
        if not self._forced or stop.event != ENTER:
            return None
        pairs: LeafPairs = []
        for name, mine, theirs in stop.leaf_pairs():
            known = self._forced.get((id(mine), id(theirs)))
            if known is not None and known[2] == (_version(mine), _version(theirs)):
                pair = stop.comparer.compare(mine, theirs)
                assert pair is not None
                pairs.append((name, mine, theirs, pair))
        if not pairs:
            return None
        self._note(stop, [name for name, *_ in pairs])
        return self._replacement(stop, pairs)

    def _replacement(self, stop: Stop, pairs: LeafPairs) -> Replacement | None:
        key = {stop.call.key or ""}
        if isinstance(stop.candidate, Enter):
            return Forcing(entries=key).arguments(stop.met, stop.candidate, pairs)
        assert isinstance(stop.candidate, Exit)
        return Forcing(exits=key).outputs(stop.met, stop.candidate, pairs)

    def _note(self, stop: Stop, names: list[str]) -> None:
        self.notes.append(f"{', '.join(name or 'output' for name in names)} at {stop}")


def _is_equal(leaf: tuple[str, Any, Any, Any]) -> bool:
    pair = leaf[3]
    found = pair.statistics()
    return pair.measurement is not None and pair.layout is None and found.max == 0 and found.non_finite is None


def _version(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else 0


_BETWEEN = "no call is compared here: a side stands inside its own code; `continue`, or step to the next call"


class Answers:
    """Answers the commands; see `qtrace.debug.stop.Session`. They run in the context of the prompt's side.

    `stop` is the boundary at which both sides have stopped, None between two boundaries. `has_moved` says that a side
    was stepped on from there. `has_handed_over` says that the candidate continues from it with the reference's tensors.
    """

    parties: tuple[Party, Party]

    def __init__(self, comparison: Comparison, handover: Handover) -> None:
        self.stop: Stop | None = None
        self.has_moved = False
        self.has_handed_over = False
        self._comparison = comparison
        self._handover = handover

    def check_switch(self, side: int) -> None:
        """Raise `Refusal` where the other side has no place to show."""
        other = self.parties[1 - side]
        if not other.is_under_way:
            raise Refusal(f"the {other.name} is not under way: it has not begun, or has come to its end")

    def difference(self, expression: str) -> Iterator[str]:
        """Yield the difference of an expression's values, evaluated at the place of each side."""
        mine, _, theirs = expression.partition(" vs ")
        found = [self._find(REFERENCE, mine), self._find(CANDIDATE, theirs or mine)]
        wrong = [one for one in found if isinstance(one, str)]
        if wrong:
            yield from (f"*** {one}" for one in wrong)
            return
        reference, candidate = (one for one in found if isinstance(one, FoundValue))
        passed = self._passed(expression.strip())
        sides = zip(self.parties, (reference, candidate), passed or (), strict=False)
        if passed is not None and any(party.has_code and one.value is not given for party, one, given in sides):
            yield f"the call receives another {expression.strip()} than the local of that name; what it receives:"
            reference, candidate = (FoundValue(value, "as passed") for value in passed)
        comparer = type(self._comparison.comparer)()
        yield from difference(reference, candidate, comparer, agrees=self._agrees, tolerance=self._tolerance)

    def arguments(self) -> Iterator[str]:
        """Yield the compared arguments."""
        yield from self._compared(
            ENTER, "the call has returned already; `out` shows what, and --break …:enter stops before"
        )

    def outputs(self) -> Iterator[str]:
        """Yield the compared outputs."""
        yield from self._compared(
            EXIT, "the call is about to run, so there is no output yet; `args` shows its arguments"
        )

    def rows(self) -> Iterator[str]:
        """Yield all numbers of the call's rows."""
        if self.stop is None:
            yield _BETWEEN
        elif self.stop.event == ENTER:
            yield "the call is about to run, so there is no row yet; --break …:exit stops where there is"
        else:
            yield from rows(self.stop)

    def stacks(self) -> Iterator[str]:
        """Yield both stacks side by side."""
        yield from side_by_side(self.parties)

    def hand_over(self, *, heals: bool) -> str:
        """Force the reference's tensors, and return their names and the place; raises `Refusal` if there are none."""
        stop, candidate = self.stop, self.parties[CANDIDATE]
        if not candidate.has_code:
            raise Refusal("the candidate is a stored trace, which cannot go on with other tensors than those it holds")
        if stop is None or self.has_moved:
            raise Refusal("tensors are passed where both stand at a call, and a side was stepped on from there")
        error = stop.error()
        if error is not None:
            raise Refusal(f"there is nothing to hand over: the {error[0]} raised in this call")
        if not candidate.is_at(stop.candidate):
            raise Refusal(
                "the candidate passed this call before the reference came to it, and takes nothing here any more"
            )
        lacking = self.parties[REFERENCE].lacks(stop.event, whole=True)
        if lacking is not None:
            raise Refusal(f"there is nothing to hand over: {lacking}")
        # In the candidate's own torch state.
        candidate.reply = candidate.on(lambda: self._handover.here(stop, heals=heals))
        self.has_handed_over = True
        return self._handover.notes[-1]

    def _compared(self, event: str, otherwise: str) -> Iterator[str]:
        if self.stop is None:
            yield _BETWEEN
        elif self.stop.event != event:
            yield otherwise
        else:
            lacking = [said for party in self.parties if (said := party.lacks(event)) is not None]
            if lacking:
                yield f"nothing is compared here: {' and '.join(lacking)}"
            else:
                yield from compared(self.stop)

    def _passed(self, name: str) -> tuple[Any, Any] | None:
        """Return both sides' values of an argument of the call that is about to run; None for any other name."""
        stop = self.stop
        if stop is None or not (isinstance(stop.reference, Enter) and isinstance(stop.candidate, Enter)):
            return None
        mine, theirs = stop.reference.arguments.values, stop.candidate.arguments.values
        return (mine[name], theirs[name]) if name in mine and name in theirs else None

    def _find(self, side: int, expression: str) -> FoundValue | str:
        """Return the value of an expression on a side, or the reason why there is none."""
        party = self.parties[side]
        if not party.is_under_way:
            return f"{NAMES[side]}: not under way"
        try:
            return party.find(expression)
        except Refusal as refusal:
            return f"{NAMES[side]}: {refusal}"
        except Exception as error:
            return f"{NAMES[side]}: {type(error).__name__}: {error}"

    def _agrees(self, pair: Pair) -> bool:
        return self._comparison.agrees(pair, LOCAL_DEPTH)

    def _tolerance(self, pair: Pair) -> float:
        return self._comparison.floors.of(pair.dtypes, LOCAL_DEPTH)
