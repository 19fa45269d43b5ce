"""The main loop: drives two sides in lockstep until each pair of calls was compared at its entry and at its exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qtrace.engine.events import Bound, Call, End, Enter, Event, Exit, Replacement
from qtrace.engine.live_side import LiveSide
from qtrace.tree import frozen

if TYPE_CHECKING:
    from qtrace.engine.comparison import Comparison

REFERENCE, CANDIDATE = 0, 1


class Side(Protocol):
    """A source of events: a live model, or a trace on disk."""

    def start(self, function: Callable[[], Any]) -> Event:
        """Begin the run, and return the first event."""

    def step(self, reply: Replacement | None = None) -> Event:
        """Go on to the next event and return it; with a reply the side uses that value in place of its own."""

    def close(self) -> None:
        """End the run, wherever it is."""


class Meeting(Protocol):
    """Receives every pair of calls while both sides are suspended there, and every call without a partner.

    A returned value is passed to the candidate in place of its own, if the candidate is still suspended there.
    """

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        """Both sides are at the entry of the same call."""

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        """Both sides are at the exit of the same call; `error` is set on a side whose call raised."""

    def alone(self, side: int, event: Exit) -> None:
        """A call of one side has found no partner inside the scope that it ran in."""


@dataclass(slots=True, eq=False)
class Shelved:
    """A call that one side passed before the other reached it; `exit` is None until the call has been left.

    `keep` is False where no partner can follow any more: such a call is not copied and not searched.
    """

    enter: Enter
    keep: bool
    inside: list[Shelved] = field(default_factory=list)
    exit: Exit | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """A pair of calls under way; by side, the calls that were passed inside it (`shelf`) and are open there (`ahead`).

    `whole` holds a side's call where it was shelved, and left again, before the other side reached it. A scope is
    even as long as neither side has gone ahead in it.
    """

    calls: tuple[Call, Call] | None = None
    shelf: tuple[list[Shelved], list[Shelved]] = field(default_factory=lambda: ([], []))
    ahead: tuple[list[Shelved], list[Shelved]] = field(default_factory=lambda: ([], []))
    whole: list[Shelved | None] = field(default_factory=lambda: [None, None])
    is_even: bool = True


class Lockstep:
    """One run of both sides; `ends` holds how each ended, once `run` has returned.

    With `reference_first` the candidate never goes ahead, so that it can receive the reference's values everywhere.
    """

    def __init__(self, reference: Side, candidate: Side, meeting: Meeting, *, reference_first: bool = False) -> None:
        self.ends = (End(), End())
        self._reference_first = reference_first
        self._sides = (reference, candidate)
        self._meeting = meeting
        self._now: list[Event] = []
        self._scopes: list[Scope] = []
        self._turn = REFERENCE

    def run(self, reference: Callable[[], Any], candidate: Callable[[], Any]) -> None:
        """Run both functions to their ends, or until one of them raises; both sides are closed in any case."""
        try:
            self._scopes = [Scope()]
            self._now = [self._sides[REFERENCE].start(reference)]
            if not self._failed():
                self._now.append(self._sides[CANDIDATE].start(candidate))
            while not self._over():
                self._advance()
        finally:
            for side in self._sides:
                side.close()
        while self._scopes and not self._failed():
            self._clear(self._scopes.pop())
        ends = [event if isinstance(event, End) else End() for event in self._now]
        self.ends = (ends[0], ends[1] if len(ends) > 1 else End())

    def _over(self) -> bool:
        return all(isinstance(event, End) for event in self._now) or self._failed()

    def _failed(self) -> bool:
        return any(isinstance(event, End) and event.error is not None for event in self._now)

    # One decision at a time: settle an event against one that is there already, or let one side go ahead.

    def _advance(self) -> None:
        scope = self._scopes[-1]
        if scope.is_even and self._advance_together(scope):
            return
        for side in (REFERENCE, CANDIDATE):
            if scope.whole[side] is not None:
                continue
            event = self._now[side]
            if isinstance(event, Exit) and event.error is not None:
                self._unwind(side)
                return
            if isinstance(event, Enter):
                match = _take(scope.shelf[1 - side], event.call.key, nested=not scope.ahead[side])
                if match is not None:
                    self._pair_with_shelved(scope, side, event, match)
                    return
            elif scope.ahead[side]:
                self._leave_ahead(scope, side, event)
                return
        first, second = self._entry(scope, REFERENCE), self._entry(scope, CANDIDATE)
        if first is not None and second is not None:
            # Two calls of a shared module inside two different parents that are not paired yet are no pair.
            between_parents = bool(scope.ahead[REFERENCE] and scope.ahead[CANDIDATE])
            if first.call.key == second.call.key and not between_parents:
                self._pair_live(first, second)
            else:
                side, self._turn = self._turn, 1 - self._turn
                self._go_ahead(scope, REFERENCE if self._reference_first else side, keep=True)
        elif first is not None:
            self._go_ahead(scope, REFERENCE, keep=False)
        elif second is not None:
            self._go_ahead(scope, CANDIDATE, keep=False)
        else:
            self._close(scope)

    def _advance_together(self, scope: Scope) -> bool:
        """Settle the ordinary case, both sides at the same event and nothing shelved; return whether it applied."""
        first, second = self._now
        if isinstance(first, Enter):
            if not isinstance(second, Enter) or first.call.key != second.call.key:
                return False
            self._pair_live(first, second)
            return True
        if not isinstance(first, Exit) or not isinstance(second, Exit) or scope.calls is None:
            return False
        if first.error is not None or second.error is not None:
            return False
        if first.call is not scope.calls[REFERENCE] or second.call is not scope.calls[CANDIDATE]:
            return False
        self._scopes.pop()
        reply = self._meeting.left(first, second)
        self._step_both(reply)
        return True

    def _entry(self, scope: Scope, side: int) -> Enter | None:
        """Return the entry at which the side is suspended inside this scope; None where it is done with the scope."""
        event = self._now[side]
        return event if scope.whole[side] is None and isinstance(event, Enter) else None

    def _step(self, side: int, reply: Replacement | None = None) -> None:
        self._now[side] = self._sides[side].step(reply)

    def _step_both(self, reply: Replacement | None) -> None:
        """Let both sides go on; not the candidate where the reference has just ended in an error, above all Ctrl-C."""
        self._step(REFERENCE)
        if not self._failed():
            self._step(CANDIDATE, reply)

    def _pair_live(self, reference: Enter, candidate: Enter) -> None:
        reply = self._meeting.entered(reference, candidate)
        self._scopes.append(Scope((reference.call, candidate.call)))
        self._step_both(reply)

    def _pair_with_shelved(self, outer: Scope, side: int, event: Enter, match: Shelved) -> None:
        """Pair an entry with a call that the other side reached before, and has left or is still inside."""
        first, second = (event, match.enter) if side == REFERENCE else (match.enter, event)
        reply = self._meeting.entered(first, second)
        scope = Scope((first.call, second.call), is_even=False)
        scope.shelf[1 - side].extend(match.inside)
        if match.exit is not None:
            scope.whole[1 - side] = match
        else:
            # The calls that the other side has open inside that call belong to the new scope.
            still_open = outer.ahead[1 - side]
            depth = still_open.index(match)
            scope.ahead[1 - side].extend(still_open[depth + 1 :])
            del still_open[depth:]
        self._scopes.append(scope)
        self._step(side, reply if side == CANDIDATE else None)

    def _go_ahead(self, scope: Scope, side: int, *, keep: bool) -> None:
        """Let one side enter a call whose partner has not come yet (`keep`), or can no longer come."""
        event = self._now[side]
        assert isinstance(event, Enter)
        scope.is_even = False
        shelved = Shelved(_frozen_entry(event) if keep else event, keep)
        ahead = scope.ahead[side]
        if keep:
            (ahead[-1].inside if ahead else scope.shelf[side]).append(shelved)
        ahead.append(shelved)
        self._step(side)

    def _leave_ahead(self, scope: Scope, side: int, event: Event) -> None:
        """Close the innermost call that the side has open ahead of the other."""
        shelved = scope.ahead[side].pop()
        if isinstance(event, Exit) and event.call is shelved.enter.call:
            if shelved.keep:
                shelved.exit = Exit(event.call, frozen(event.value), event.error)
            else:
                self._meeting.alone(side, event)
            self._step(side)
        else:
            # The exit was lost: the model swallowed an error that is no Exception.
            shelved.exit = _lost(shelved.enter.call)

    def _unwind(self, side: int) -> None:
        """Let a side that is raising run to where the exception is caught, or to its end, before the other moves on.

        Otherwise the other side would run through calls that have no counterpart, only to be stopped.
        """
        for scope in reversed(self._scopes):
            if scope.whole[side] is not None:
                return
            while scope.ahead[side]:
                if not _is_raising(self._now[side]):
                    return
                self._leave_ahead(scope, side, self._now[side])
            event = self._now[side]
            if not isinstance(event, Exit) or event.error is None or scope.calls is None:
                return
            scope.is_even = False
            scope.whole[side] = Shelved(Enter(event.call, Bound({}, (), frozenset())), False, exit=event)
            self._step(side)

    def _close(self, scope: Scope) -> None:
        """Both sides are done with the scope: compare the outputs of its two calls."""
        self._scopes.pop()
        self._clear(scope)
        if scope.calls is None:
            return
        exits = []
        for side in (REFERENCE, CANDIDATE):
            whole, event, call = scope.whole[side], self._now[side], scope.calls[side]
            if whole is not None:
                exits.append(whole.exit or _lost(call))
            elif isinstance(event, Exit) and event.call is call:
                exits.append(event)
            else:
                exits.append(_lost(call))
        reply = self._meeting.left(exits[REFERENCE], exits[CANDIDATE])
        for side in (REFERENCE, CANDIDATE):
            if exits[side] is self._now[side] and not self._failed():
                self._step(side, reply if side == CANDIDATE else None)

    def _clear(self, scope: Scope) -> None:
        """Report the calls that stayed on the shelves without a partner."""
        for side in (REFERENCE, CANDIDATE):
            for shelved in _all(scope.shelf[side]):
                self._meeting.alone(side, shelved.exit or _lost(shelved.enter.call))


def _take(shelf: list[Shelved], key: str | None, *, nested: bool) -> Shelved | None:
    """Take the shelf's first call of the reference path and return it; with `nested` also one inside another call."""
    for position, shelved in enumerate(shelf):
        if shelved.enter.call.key == key:
            return shelf.pop(position)
        found = _take(shelved.inside, key, nested=True) if nested and shelved.inside else None
        if found is not None:
            return found
    return None


def _is_raising(event: Event) -> bool:
    return isinstance(event, Exit) and event.error is not None


def _all(shelf: list[Shelved]) -> Iterator[Shelved]:
    for shelved in shelf:
        yield shelved
        yield from _all(shelved.inside)


def _lost(call: Call) -> Exit:
    return Exit(call, None, RuntimeError("the call was never left"))


def _frozen_entry(event: Enter) -> Enter:
    bound = event.arguments
    return Enter(event.call, Bound({n: frozen(v) for n, v in bound.values.items()}, bound.positional, bound.passed))


class EndRun(Exception):
    """Raised at a pair of calls to end the run there; its text says why. Earlier comparisons are still reported."""


class Attendant(Protocol):
    """Steps in at pairs of calls, in each pass that it attends; see `qtrace.debug`."""

    def around(self, comparison: Comparison) -> Meeting:
        """Return the object that receives the pairs of calls in the comparison's place, and passes them on to it."""

    def attending(self, sides: tuple[LiveSide, LiveSide]) -> AbstractContextManager[None]:
        """Return the context that holds while both sides run, from before they start."""

    def warnings(self) -> list[str]:
        """Return the warnings about its actions that a reader of the report must know."""


class MeetingProxy:
    """Passes every call to `inner`, and returns the result of that."""

    def __init__(self, inner: Meeting) -> None:
        self.inner = inner

    def entered(self, reference: Enter, candidate: Enter) -> Replacement | None:
        """Both sides are at the entry of the same call."""
        return self.inner.entered(reference, candidate)

    def left(self, reference: Exit, candidate: Exit) -> Replacement | None:
        """Both sides are at the exit of the same call."""
        return self.inner.left(reference, candidate)

    def alone(self, side: int, event: Exit) -> None:
        """A call of one side has found no partner."""
        self.inner.alone(side, event)
