"""What the prompts ask of whoever holds both sides, and how a prompt is left."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Protocol

PROMPT = "(qtrace) "


class Move(Enum):
    """How a prompt was left."""

    STEP = auto()
    SWITCH = auto()
    CONTINUE = auto()
    NEXT_FAULT = auto()
    QUIT = auto()


class Refusal(Exception):
    """A command cannot do what it was asked for; the sentence says why, and the prompt stays."""


class Session(Protocol):
    """Answers the commands that take more than one side; each yields lines to show."""

    def check_switch(self, side: int) -> None:
        """Raise `Refusal` where there is nothing to go to on the other side."""

    def difference(self, expression: str) -> Iterator[str]:
        """Yield how the values of an expression differ."""

    def arguments(self) -> Iterator[str]:
        """Yield the compared arguments."""

    def outputs(self) -> Iterator[str]:
        """Yield the compared outputs."""

    def rows(self) -> Iterator[str]:
        """Yield all numbers of the call's rows."""

    def stacks(self) -> Iterator[str]:
        """Yield both stacks side by side."""

    def hand_over(self, *, heals: bool) -> str:
        """Hand over the reference's tensors, and return which, and where; raises `Refusal` where none are."""
