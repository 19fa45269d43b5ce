"""The interface of a side in a conversation: a prompt, a current place, and names that have values there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from qtrace.debug.pdb_prompt import Standing
from qtrace.debug.stop import Move
from qtrace.debug.values import FoundValue
from qtrace.engine.events import Enter, Event, Exit, Pause, Replacement

T = TypeVar("T")


class Party(Protocol):
    """One of the two sides; `reply` holds the tensors that it will continue with in place of its own."""

    name: str
    reply: Replacement | None

    @property
    def has_code(self) -> bool:
        """Return whether the side has code."""

    @property
    def is_under_way(self) -> bool:
        """Return whether it has a current place: it has begun, and has not ended."""

    @property
    def is_armed(self) -> bool:
        """Return whether there is any place to stop between two events."""

    @property
    def stops_anywhere(self) -> bool:
        """Return whether it is being stepped, and stops at the next event, whichever it is."""

    @property
    def has_arrived(self) -> bool:
        """Return whether it has reached its next event, and waits there for the other side."""

    def is_at(self, event: Enter | Exit) -> bool:
        """Return whether it stands at this event: it may have passed it before the other side reached it."""

    def lacks(self, event: str, *, whole: bool = False) -> str | None:
        """Return in words which values of an event ("enter" or "exit") it does not hold; None where it holds them.

        With `whole`, a tensor of which it holds only a part counts as lacking.
        """

    def stand(self, event: Enter | Exit | None) -> None:
        """Note its current place: this event, or, where there is none, a place between two events."""

    def converse(self) -> Move:
        """Open the prompt at this place, and return how it was left."""

    def message(self, text: str) -> None:
        """Show a line at the prompt."""

    def on(self, function: Callable[[], T]) -> T:
        """Run a function in this side's own state while it stands still, and return the function's result."""

    def find(self, expression: str) -> FoundValue:
        """Evaluate an expression at the current place; raises any exception of the expression."""

    def place(self) -> str:
        """Return the current place."""

    def entries(self) -> tuple[list[str], int]:
        """Return its stack, the outermost entry first, and the index of the selected entry."""

    def standing(self, event: Enter | Exit) -> Standing:
        """Return the current place, for another debugger."""

    def disarm(self) -> None:
        """Give up a step that is under way."""

    def go(self) -> Event | Pause:
        """Continue to the next event or pause."""

    def release(self) -> None:
        """Release the model or the trace."""
