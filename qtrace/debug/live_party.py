"""A live side in a conversation: runs pdb on the model's own stack, line by line between two events."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, TypeVar

from qtrace.debug.pdb_prompt import Prompt, Standing, outermost, place_of
from qtrace.debug.stop import NAMES, Move, Script, Session
from qtrace.debug.values import FoundValue
from qtrace.engine.events import Enter, Event, Exit, Pause, Replacement
from qtrace.engine.live_side import LiveSide


class Tracer(Protocol):
    """A debugger that may want to stop inside a side's code."""

    @property
    def is_armed(self) -> bool:
        """Whether there is any place where it would stop."""

    def arm(self) -> None:
        """Set the thread's trace function; called on the side's own stack."""


class SideStepper:
    """Continues a side until its next event, or until its tracer pauses it.

    The trace function belongs to the thread, so it is set only while this side runs. `event` is the last event of the
    side, `reply` the replacement that it will continue with from there. A side may be one event ahead of the lockstep,
    which receives this event when it asks for a step. The driver calls `paused` while a side stands between two events.
    """

    def __init__(self, side: LiveSide, tracer: Tracer, paused: Callable[[], None]) -> None:
        self.side = side
        self.event: Event | None = None
        self.reply: Replacement | None = None
        self._tracer = tracer
        self._paused = paused
        self._ahead: Event | None = None
        self._is_paused = False

    @property
    def is_paused(self) -> bool:
        """Return whether the side stands between two events, inside its own code."""
        return self._is_paused

    @property
    def has_arrived(self) -> bool:
        """Return whether the side has reached its next event, and waits there for the other side."""
        return self._ahead is not None

    def step(self, reply: Replacement | None) -> Event:
        """Continue to the next event, through all pauses."""
        if reply is not None:
            self.reply = reply
        while self._ahead is None:
            if isinstance(self.go(), Pause):
                self._paused()
        self.event, self._ahead = self._ahead, None
        return self.event

    def go(self) -> Event | Pause:
        """Continue to the next event or pause."""
        reply, self.reply = self.reply, None
        if not self._tracer.is_armed:
            found = self.side.resume(reply)
        else:
            outer = sys.gettrace()
            try:
                found = self.side.resume(reply, before=self._tracer.arm)
            finally:
                sys.settrace(outer)
        self._is_paused = isinstance(found, Pause)
        if not isinstance(found, Pause):
            self._ahead = found
        return found


T = TypeVar("T")


class LiveParty:
    """Side `number`; `paused` is called while it stands between two events. See `qtrace.debug.conversation.Party`."""

    has_code = True

    def __init__(
        self, side: LiveSide, number: int, session: Session, script: Script | None, paused: Callable[[], None]
    ) -> None:
        self.name = NAMES[number]
        self._side = side
        self._prompt = Prompt(side, number, self.name, session, script)
        self._stepper = SideStepper(side, self._prompt, paused)
        self._is_asked = False
        side.stepper = self._stepper

    @property
    def reply(self) -> Replacement | None:
        """The tensors that the model continues with in place of its own."""
        return self._stepper.reply

    @reply.setter
    def reply(self, value: Replacement | None) -> None:
        self._stepper.reply = value

    @property
    def is_under_way(self) -> bool:
        """Return whether the model has begun to run, and has not ended."""
        return self._side.is_under_way and bool(self._prompt.frames()[0])

    @property
    def is_armed(self) -> bool:
        """Return whether a step is under way, or a breakpoint is set in a file."""
        return self._prompt.is_armed

    @property
    def stops_anywhere(self) -> bool:
        """Return whether the step under way ends at the next event, whichever it is."""
        return self._prompt.stops_anywhere

    @property
    def has_arrived(self) -> bool:
        """Return whether it has reached its next event, and waits there for the other side."""
        return self._stepper.has_arrived

    def is_at(self, event: Enter | Exit) -> bool:
        """Return whether it stands at this event itself."""
        return self._stepper.event is event

    def lacks(self, event: str, *, whole: bool = False) -> str | None:
        """Return None: a model holds all values of an event."""
        return None

    def stand(self, event: Enter | Exit | None) -> None:
        """Note the current frame of the model; a model that is paused in its own code has noted it already."""
        if self._side.is_under_way and not self._stepper.is_paused:
            last = self._stepper.event
            key = last.call.key if isinstance(last, (Enter, Exit)) else None
            self._prompt.stand_at(self._side.caller(key) or self._side.aside(outermost))

    def converse(self) -> Move:
        """Open the prompt on the model's own stack, and return how it was left."""
        outer, self._is_asked = sys.gettrace(), True
        try:
            return self._side.aside(self._prompt.prompt_here)
        finally:
            self._is_asked = False
            sys.settrace(outer)

    def message(self, text: str) -> None:
        """Show a line at the prompt."""
        self._prompt.message(text)

    def on(self, function: Callable[[], T]) -> T:
        """Run a function on the model's own stack; at a prompt this stack is already the running one."""
        return function() if self._is_asked else self._side.aside(function)

    def find(self, expression: str) -> FoundValue:
        """Evaluate an expression in the selected frame, or in the nearest outer frame that knows its names."""
        return self.on(lambda: self._prompt.find(expression))

    def place(self) -> str:
        """Return the line of the selected frame."""
        frames, selected = self._prompt.frames()
        return place_of(*frames[selected]) if frames else "not under way"

    def entries(self) -> tuple[list[str], int]:
        """Return the line of each frame, the outermost first, and the index of the selected frame."""
        frames, selected = self._prompt.frames()
        return [place_of(frame, line) for frame, line in frames], selected

    def standing(self, event: Enter | Exit) -> Standing:
        """Return the selected frame, and its locals."""
        frames, selected = self._prompt.frames()
        frame = frames[selected][0] if frames else None
        values = dict(frame.f_locals) if frame is not None else {}
        return Standing(frame, values, event.call.path, event.call.index)

    def disarm(self) -> None:
        """Give up a step that is under way."""
        self._prompt.disarm()

    def go(self) -> Event | Pause:
        """Continue to the next event or pause."""
        return self._stepper.go()

    def release(self) -> None:
        """Release the model."""
        self._side.stepper = None
        self._prompt.release()
