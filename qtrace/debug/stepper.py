"""Steps one side through its own code, line by line, between two events."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from qtrace.engine.events import Event, Pause, Replacement
from qtrace.engine.live_side import LiveSide


class Tracer(Protocol):
    """A debugger that may want to stop inside a side's code."""

    @property
    def is_armed(self) -> bool:
        """Whether there is anything that it would stop at."""

    def arm(self) -> None:
        """Set the thread's trace function; called on the side's own stack."""


class SideStepper:
    """Goes on with a side, until its next event, or until its tracer pauses it.

    The trace function belongs to the thread: it is there only while this side runs. `event` is where the side stood
    last, `reply` what it will go on with from there. A side may go ahead of the lockstep by one event, which the
    lockstep is given when it asks for a step. `paused` is called, by whoever drives, while a side stands between two
    events.
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
        """Return whether the side has come to its next event, and waits there for the other."""
        return self._ahead is not None

    def step(self, reply: Replacement | None) -> Event:
        """Go on to the next event, through whatever pauses there are."""
        if reply is not None:
            self.reply = reply
        while self._ahead is None:
            if isinstance(self.go(), Pause):
                self._paused()
        self.event, self._ahead = self._ahead, None
        return self.event

    def go(self) -> Event | Pause:
        """Go on to the next event or pause."""
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
