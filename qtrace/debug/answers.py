"""What the commands at a prompt are told of both sides, and what they may hand over."""

from __future__ import annotations

from collections.abc import Iterator

from qtrace.debug import views
from qtrace.debug.breakpoints import ENTER, EXIT
from qtrace.debug.difference import Found, difference
from qtrace.debug.handover import Handover
from qtrace.debug.party import Party
from qtrace.debug.session import Refusal
from qtrace.debug.stop import NAMES, Stop
from qtrace.engine.comparison import LOCAL_DEPTH, Comparison
from qtrace.engine.driver import CANDIDATE, REFERENCE
from qtrace.engine.pair import Pair

_BETWEEN = "no call is compared here: a side stands inside its own code; `continue`, or step to the next call"


class Answers:
    """Answers the commands; see `qtrace.debug.session.Session`. They run where the prompt of a side does.

    `stop` is the meeting at which both sides stand, None between two, and `has_moved` says that a side was stepped on
    from there. `has_handed_over` says that the candidate goes on from it with the reference's tensors.
    """

    parties: tuple[Party, Party]

    def __init__(self, comparison: Comparison, handover: Handover) -> None:
        self.stop: Stop | None = None
        self.has_moved = False
        self.has_handed_over = False
        self._comparison = comparison
        self._handover = handover

    def check_switch(self, side: int) -> None:
        """Raise `Refusal` where there is nothing to go to on the other side."""
        other = self.parties[1 - side]
        if not other.is_under_way:
            raise Refusal(f"the {other.name} is not under way: it has not begun, or has come to its end")

    def difference(self, expression: str) -> Iterator[str]:
        """Yield how the values of an expression differ, evaluated where each side stands."""
        mine, _, theirs = expression.partition(" vs ")
        found = [self._find(REFERENCE, mine), self._find(CANDIDATE, theirs or mine)]
        wrong = [one for one in found if isinstance(one, str)]
        if wrong:
            yield from (f"*** {one}" for one in wrong)
            return
        reference, candidate = (one for one in found if isinstance(one, Found))
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
            yield from views.rows(self.stop)

    def stacks(self) -> Iterator[str]:
        """Yield both stacks side by side."""
        yield from views.side_by_side(self.parties)

    def hand_over(self, *, heals: bool) -> str:
        """Hand over the reference's tensors, and return which, and where; raises `Refusal` where none are."""
        stop, candidate = self.stop, self.parties[CANDIDATE]
        if not candidate.has_code:
            raise Refusal("the candidate is a stored trace, which cannot go on with other tensors than those it holds")
        if stop is None or self.has_moved:
            raise Refusal("tensors are handed over where both stand at a call, and a side was stepped on from there")
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
                yield from views.compared(self.stop)

    def _find(self, side: int, expression: str) -> Found | str:
        """Return the value of an expression on a side, or why there is none."""
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
