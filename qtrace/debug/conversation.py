"""Both sides standing still, and a user at the prompt: who speaks, who is stepped, what the commands answer."""

from __future__ import annotations

import bdb
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from qtrace.debug import foreign, views
from qtrace.debug.breakpoints import ENTER, EXIT
from qtrace.debug.difference import Found, difference
from qtrace.debug.handover import Handover
from qtrace.debug.prompt import Prompt
from qtrace.debug.script import Script
from qtrace.debug.sidepdb import Move, outermost
from qtrace.debug.stepper import SideStepper
from qtrace.debug.stop import NAMES, Stop
from qtrace.lockstep import CANDIDATE, REFERENCE, Comparison, EndRun, Pair
from qtrace.lockstep.comparison import LOCAL_DEPTH
from qtrace.probe import Enter, Exit, LiveSide, Pause, Replacement

T = TypeVar("T")

_BETWEEN = "no call is compared here: a side stands inside its own code; `continue`, or step to the next call"


class Conversation:
    """The prompts of one pass.

    The prompt of a side runs on that side's own stack; between two prompts the driver decides here who goes on. What
    the commands ask for runs on the stack of the side that is current.

    `seeks_fault` says that the user wants to stop at the next fault, `has_handed_over` that the candidate goes on from
    the last meeting with the reference's tensors.
    """

    def __init__(
        self, sides: tuple[LiveSide, LiveSide], comparison: Comparison, handover: Handover, script: Script | None
    ) -> None:
        self.seeks_fault = False
        self.has_handed_over = False
        self._sides = sides
        self._comparison = comparison
        self._handover = handover
        self._current = CANDIDATE
        self._stop: Stop | None = None
        self._last = ""
        self._has_moved = False
        self._prompts = (
            Prompt(sides[REFERENCE], REFERENCE, NAMES[REFERENCE], self, script),
            Prompt(sides[CANDIDATE], CANDIDATE, NAMES[CANDIDATE], self, script),
        )
        self._steppers = (
            SideStepper(sides[REFERENCE], self._prompts[REFERENCE], lambda: self._converse(REFERENCE)),
            SideStepper(sides[CANDIDATE], self._prompts[CANDIDATE], lambda: self._converse(CANDIDATE)),
        )
        for side, stepper in zip(sides, self._steppers, strict=True):
            side.stepper = stepper

    def close(self) -> None:
        """Let go of both models."""
        self._stop = None
        for side, prompt in zip(self._sides, self._prompts, strict=True):
            side.stepper = None
            prompt.release()

    # Between the prompts.

    def begin(self, stop: Stop, reply: Replacement | None) -> None:
        """Note what the candidate will go on with from a meeting."""
        again = self._handover.again(stop) if self._is_here(stop, CANDIDATE) else None
        self.has_handed_over = again is not None
        self._steppers[CANDIDATE].reply = again or reply

    def end(self) -> Replacement | None:
        """Return what the candidate goes on with from a meeting."""
        return self._steppers[CANDIDATE].reply

    @property
    def wants_next(self) -> bool:
        """Return whether a side is stepped that stops at whatever comes next."""
        return any(prompt.stops_anywhere for prompt in self._prompts)

    def open(self, stop: Stop, reason: str) -> None:
        """Stop at a meeting; raises `EndRun` where the user ends the run."""
        self._stop, self._has_moved, self.seeks_fault = stop, False, False
        self._last = str(stop)
        for prompt in self._prompts:
            prompt.disarm()
        self._stand()
        try:
            if foreign.is_wanted():
                self._open_foreign(stop)
                return
            for line in views.heading(stop, reason, self._prompts):
                print(line)
            self._converse(self._current)
        finally:
            self._stop = None

    def pass_by(self, stop: Stop) -> None:
        """Go on from a meeting where nobody wants to stop.

        A candidate that is stepped goes first: the reference, which the lockstep lets go first, is to stand still.
        """
        candidate = self._steppers[CANDIDATE]
        if self._prompts[CANDIDATE].is_armed and self._is_here(stop, CANDIDATE) and isinstance(candidate.go(), Pause):
            self._converse(CANDIDATE)

    def _converse(self, current: int) -> None:
        """Open prompts until the user lets the run go on; raises `EndRun` where the user ends it."""
        self._stand()
        while True:
            self._current = current
            outer = sys.gettrace()
            move = self._sides[current].aside(self._prompts[current].prompt_here)
            sys.settrace(outer)
            if move is Move.QUIT:
                self._quit()
            elif move is Move.SWITCH:
                current = 1 - current
            elif move is not Move.STEP:
                self.seeks_fault = move is Move.NEXT_FAULT
                return
            elif self._steppers[current].has_arrived:
                print(
                    f"the {NAMES[current]} waits at its next call for the {NAMES[1 - current]}: step there, or continue"
                )
                self._prompts[current].disarm()
            else:
                self._has_moved = True
                self._prompts[1 - current].disarm()
                if not isinstance(self._steppers[current].go(), Pause):
                    return

    def _stand(self) -> None:
        """Let each prompt know in which frame its side stands; one that is paused in its own code knows."""
        for side, prompt, stepper in zip(self._sides, self._prompts, self._steppers, strict=True):
            if side.is_under_way and not stepper.is_paused:
                key = stepper.event.call.key if isinstance(stepper.event, (Enter, Exit)) else None
                prompt.stand_at(side.caller(key) or side.aside(outermost))

    def _quit(self) -> NoReturn:
        raise EndRun(f"ended at the prompt, {'after' if self._stop is None else 'at'} {self._last}")

    def _open_foreign(self, stop: Stop) -> None:
        pairs = {name or "output": (mine, theirs) for name, mine, theirs in stop.leaf_pairs()}
        standing = []
        for prompt, event in zip(self._prompts, stop.events, strict=True):
            frames, index = prompt.frames()
            frame = frames[index][0] if frames else None
            values = dict(frame.f_locals) if frame is not None else {}
            standing.append(foreign.Standing(frame, values, event.call.path, event.call.index))
        args, out = (pairs, {}) if stop.event == ENTER else ({}, pairs)
        try:
            foreign.stand(standing[REFERENCE], standing[CANDIDATE], args, out)
        except bdb.BdbQuit:
            self._quit()

    # What the commands ask for; they run on the current side's stack.

    def other(self, side: int) -> str | None:
        """Return why the other side cannot be switched to; None where it can."""
        if self._sides[1 - side].is_under_way and self._prompts[1 - side].frames()[0]:
            return None
        return f"the {NAMES[1 - side]} is not under way: it has not begun, or has come to its end"

    def difference(self, expression: str) -> Iterator[str]:
        """Yield how the values of an expression differ, evaluated on each side's own stack."""
        mine, _, theirs = expression.partition(" vs ")
        found = [self._find(REFERENCE, mine), self._find(CANDIDATE, theirs or mine)]
        wrong = [one for one in found if isinstance(one, str)]
        if wrong:
            yield from (f"*** {one}" for one in wrong)
            return
        reference, candidate = (one for one in found if isinstance(one, Found))
        yield from difference(reference, candidate, agrees=self._agrees, tolerance=self._tolerance)

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
        if self._stop is None:
            yield _BETWEEN
        elif self._stop.event == ENTER:
            yield "the call is about to run, so there is no row yet; --break …:exit stops where there is"
        else:
            yield from views.rows(self._stop)

    def stacks(self) -> Iterator[str]:
        """Yield both stacks side by side."""
        yield from views.side_by_side(self._prompts)

    def hand_over(self, *, heals: bool) -> str | None:
        """Hand over the reference's tensors; return why not, if so."""
        stop = self._stop
        if stop is None or self._has_moved:
            return "tensors are handed over where both stand at a call, and a side was stepped on from there"
        if not self._is_here(stop, CANDIDATE):
            return "the candidate passed this call before the reference came to it, and takes nothing here any more"
        # In the candidate's own torch state.
        found = self._on(CANDIDATE, lambda: self._handover.here(stop, heals=heals))
        if isinstance(found, str):
            return found
        self._steppers[CANDIDATE].reply = found
        self.has_handed_over = True
        print(f"handed over: {self._handover.notes[-1]}")
        return None

    def _compared(self, event: str, otherwise: str) -> Iterator[str]:
        if self._stop is None:
            yield _BETWEEN
        elif self._stop.event != event:
            yield otherwise
        else:
            yield from views.compared(self._stop)

    def _find(self, side: int, expression: str) -> Found | str:
        """Return the value of an expression on a side, or why there is none."""
        prompt = self._prompts[side]
        if not self._sides[side].is_under_way:
            return f"{NAMES[side]}: not under way"
        try:
            return self._on(side, lambda: prompt.find(expression))
        except Exception as error:
            return f"{NAMES[side]}: {type(error).__name__}: {error}"

    def _on(self, side: int, function: Callable[[], T]) -> T:
        if side == self._current:
            return function()
        return self._sides[side].aside(function)

    def _is_here(self, stop: Stop, side: int) -> bool:
        """Return whether a side stands at this meeting itself: it may have passed the call before the other came."""
        return self._steppers[side].event is stop.events[side]

    def _agrees(self, pair: Pair) -> bool:
        return self._comparison.agrees(pair, LOCAL_DEPTH)

    def _tolerance(self, pair: Pair) -> float:
        return self._comparison.floors.of(pair.dtypes, LOCAL_DEPTH)
