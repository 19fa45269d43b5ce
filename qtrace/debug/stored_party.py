"""A stored side in a conversation: it has no code, and shows the record of the other side's current call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qtrace.debug.breakpoints import ENTER
from qtrace.debug.pdb_prompt import Standing
from qtrace.debug.recorded_call import RecordedCall
from qtrace.debug.stop import NAMES, Move, Script, Session
from qtrace.debug.stored_prompt import StoredPrompt
from qtrace.debug.values import FoundValue
from qtrace.engine.events import Call, Enter, Event, Exit, Pause, Replacement
from qtrace.traces import StoredSide

T = TypeVar("T")


class StoredParty:
    """Side `number`, from a trace. See `qtrace.debug.party.Party`."""

    has_code = False
    is_armed = False
    stops_anywhere = False
    has_arrived = False

    def __init__(self, side: StoredSide, number: int, session: Session, script: Script | None) -> None:
        self.name = NAMES[number]
        self.reply: Replacement | None = None
        self._side = side
        self._prompt = StoredPrompt(number, self.name, session, script)
        self._at: Call | None = None
        self._call: RecordedCall | None = None

    @property
    def is_under_way(self) -> bool:
        """Return whether there is a call to show."""
        return self._call is not None

    def is_at(self, event: Enter | Exit) -> bool:
        """Return whether this event came last."""
        return self._side.standing is event

    def lacks(self, event: str, *, whole: bool = False) -> str | None:
        """Return in words which values of a call the trace does not hold, or holds only as a sketch."""
        manifest = self._side.trace.manifest
        if event == ENTER and not manifest.arguments:
            return f"the stored {self.name} holds no arguments (--outputs-only, or imported)"
        if whole and manifest.sketches:
            return f"of each tensor the stored {self.name} holds only a sketch (--stats-only)"
        return None

    def stand(self, event: Enter | Exit | None) -> None:
        """Note the call of an event; without an event, the call of the last event."""
        standing = event if event is not None else self._side.standing
        call = standing.call if isinstance(standing, (Enter, Exit)) else None
        if call is None:
            self._at = self._call = None
        elif call is not self._at:
            self._at, self._call = call, RecordedCall(self._side, call)

    def converse(self) -> Move:
        """Show the call, open the prompt there, and return how it was left."""
        assert self._call is not None
        return self._prompt.prompt_at(self._call)

    def message(self, text: str) -> None:
        """Show a line at the prompt."""
        self._prompt.message(text)

    def on(self, function: Callable[[], T]) -> T:
        """Run a function directly: a trace has no state of its own."""
        return function()

    def find(self, expression: str) -> FoundValue:
        """Evaluate an expression over the recorded values of the call, or of an enclosing call."""
        assert self._call is not None
        return self._prompt.find(self._call, expression)

    def place(self) -> str:
        """Return the line that made the call."""
        return "not under way" if self._call is None else self._call.place()

    def entries(self) -> tuple[list[str], int]:
        """Return the lines that made the call and its enclosing calls, the outermost first."""
        entries = [] if self._call is None else self._call.entries()
        return entries, len(entries) - 1

    def standing(self, event: Enter | Exit) -> Standing:
        """Return the recorded values by name; there is no frame."""
        values = {} if self._call is None else self._call.all()
        return Standing(None, values, event.call.path, event.call.index)

    def disarm(self) -> None:
        """Do nothing: there is no step."""

    def go(self) -> Event | Pause:
        """Continue to the next event."""
        return self._side.step()

    def release(self) -> None:
        """Release the trace."""
        self._at = self._call = None
        self._prompt.release()
