"""A side as a conversation needs it: with a prompt, a place where it stands, and names that have values there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from qtrace.debug.pdb_prompt import Standing
from qtrace.debug.stop import Move
from qtrace.debug.values import FoundValue
from qtrace.engine.events import Enter, Event, Exit, Pause, Replacement

T = TypeVar("T")


class Party(Protocol):
    """One of the two sides; `reply` is what it will go on with in place of its own."""

    name: str
    reply: Replacement | None

    @property
    def has_code(self) -> bool:
        """Return whether there is code to stand in."""

    @property
    def is_under_way(self) -> bool:
        """Return whether there is a place where it stands: it has begun, and has not come to its end."""

    @property
    def is_armed(self) -> bool:
        """Return whether there is anything to stop at between two events."""

    @property
    def stops_anywhere(self) -> bool:
        """Return whether it is being stepped, and stops at whatever comes next."""

    @property
    def has_arrived(self) -> bool:
        """Return whether it has come to its next event, and waits there for the other."""

    def is_at(self, event: Enter | Exit) -> bool:
        """Return whether it stands at this event itself: it may have gone past before the other came."""

    def lacks(self, event: str, *, whole: bool = False) -> str | None:
        """Return in words what it does not hold of what stands at an event ("enter" or "exit"); None where it is there.

        With `whole`, tensors of which it holds a part are lacking, too.
        """

    def stand(self, event: Enter | Exit | None) -> None:
        """Note where it stands now: at this event, or where there is none between two."""

    def converse(self) -> Move:
        """Open the prompt there, and return how it was left."""

    def message(self, text: str) -> None:
        """Show a line at the prompt."""

    def on(self, function: Callable[[], T]) -> T:
        """Run something in this side's own state while it stands still, and return what that returns."""

    def find(self, expression: str) -> FoundValue:
        """Evaluate an expression where it stands; raises whatever that raises."""

    def place(self) -> str:
        """Return where it stands."""

    def entries(self) -> tuple[list[str], int]:
        """Return its stack, the outermost entry first, and the place of the selected one."""

    def standing(self, event: Enter | Exit) -> Standing:
        """Return where it stands, for another debugger."""

    def disarm(self) -> None:
        """Give up a step that is under way."""

    def go(self) -> Event | Pause:
        """Go on to the next event or pause."""

    def release(self) -> None:
        """Let go of the model, or the trace."""
