"""A stop of both sides at the entry or exit of a call, the interface that prompts need, and scripted commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Protocol

from qtrace.debug.breakpoints import ENTER, EXIT
from qtrace.engine.comparison import Comparison
from qtrace.engine.events import Call, Enter, Exit, LeafPair, argument_leaves, match_arguments
from qtrace.engine.forcing import IN, OUT
from qtrace.engine.lockstep import CANDIDATE, REFERENCE
from qtrace.engine.pair import CallPair, Pair, PairComparer, place
from qtrace.errors import SourceError

PROMPT = "(qtrace) "


class Move(Enum):
    """How a prompt was left."""

    STEP = auto()
    SWITCH = auto()
    CONTINUE = auto()
    NEXT_FAULT = auto()
    QUIT = auto()


class Refusal(Exception):
    """A command cannot be carried out; the sentence says why, and the prompt stays."""


class Session(Protocol):
    """Answers the commands that need both sides; each yields lines to show."""

    def check_switch(self, side: int) -> None:
        """Raise `Refusal` where the other side has no place to show."""

    def difference(self, expression: str) -> Iterator[str]:
        """Yield the difference of an expression's values."""

    def arguments(self) -> Iterator[str]:
        """Yield the compared arguments."""

    def outputs(self) -> Iterator[str]:
        """Yield the compared outputs."""

    def rows(self) -> Iterator[str]:
        """Yield all numbers of the call's rows."""

    def stacks(self) -> Iterator[str]:
        """Yield both stacks side by side."""

    def hand_over(self, *, heals: bool) -> str:
        """Force the reference's tensors, and return their names and the place; raises `Refusal` if there are none."""


NAMES = ("reference", "candidate")


@dataclass(slots=True)
class Stop:
    """A boundary that both sides have reached: the comparison's record of it, and the events of both sides."""

    comparison: Comparison
    met: CallPair
    reference: Enter | Exit
    candidate: Enter | Exit
    comparer: PairComparer

    @property
    def event(self) -> str:
        """Return "enter" or "exit"."""
        return ENTER if isinstance(self.reference, Enter) else EXIT

    @property
    def call(self) -> Call:
        """Return the reference's call."""
        return self.reference.call

    @property
    def mark(self) -> str:
        """Return the mark by which the comparison distinguishes arguments from outputs."""
        return IN if self.event == ENTER else OUT

    @property
    def events(self) -> tuple[Enter | Exit, Enter | Exit]:
        """Return the events of both sides."""
        return self.reference, self.candidate

    def __str__(self) -> str:
        number = f"#{self.call.index}" if self.call.index else ""
        return f"{self.call.path or '<root>'}:{self.event}{number}"

    def error(self) -> tuple[str, BaseException] | None:
        """Return the side whose call raised, and the exception."""
        for side in (REFERENCE, CANDIDATE):
            event = self.events[side]
            if isinstance(event, Exit) and event.error is not None:
                return NAMES[side], event.error
        return None

    def leaf_pairs(self) -> list[LeafPair]:
        """Return the pairs of leaves: of the arguments at an entry, of the outputs at an exit."""
        if isinstance(self.reference, Enter) and isinstance(self.candidate, Enter):
            return self.arguments(self.reference, self.candidate)
        if self.error() is not None:
            return []
        values: list[Any] = [event.value for event in self.events if isinstance(event, Exit)]
        return argument_leaves("", values[REFERENCE], values[CANDIDATE])

    @staticmethod
    def arguments(reference: Enter, candidate: Enter) -> list[LeafPair]:
        """Return the pairs of leaves of the arguments of two calls."""
        matched = match_arguments(reference.arguments, candidate.arguments)
        return [leaf for name, mine, theirs in matched for leaf in argument_leaves(name, mine, theirs)]

    def compared(self) -> Iterator[tuple[str, Any, Any, Pair | None]]:
        """Yield the leaves with their comparison, which is None for two equal plain values."""
        for name, mine, theirs in self.leaf_pairs():
            yield name, mine, theirs, self.comparer.compare(mine, theirs)

    def agrees(self, name: str, pair: Pair) -> bool:
        """Return whether a pair of this stop is the same up to rounding, a layout or a mask's fill."""
        depth = self.call.entry if self.event == ENTER else self.call.order
        return self.comparison.agrees(pair, depth, place(self.met, self.mark, name))

    def differing(self) -> list[tuple[str, Pair]]:
        """Return the pairs that do not agree; a tensor that one side omits among others counts as agreeing."""
        pairs = self.met.arguments if self.event == ENTER else self.met.outputs
        others = self.event == EXIT and any(pair.measurement is not None for _, pair in pairs)
        return [
            (name, pair) for name, pair in pairs if not self.agrees(name, pair) and not (others and _is_left_out(pair))
        ]


def _is_left_out(pair: Pair) -> bool:
    kinds = [spec.type if spec is not None else None for spec in (pair.reference, pair.candidate)]
    return pair.measurement is None and kinds.count("NoneType") == 1


class Script:
    """Reads as standard input does, and shows each command as if it had been typed.

    Blank lines and lines that begin with # are skipped; the prompt treats the end of the file as Ctrl-D. Raises
    `SourceError` for a file that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SourceError(f"--commands {path}: {said}; expected a file of prompt commands, one a line") from error
        self._lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        self._next = 0

    def readline(self) -> str:
        """Return the next command with its line break, an empty text at the end."""
        if self._next == len(self._lines):
            return ""
        line = self._lines[self._next] + "\n"
        self._next += 1
        sys.stdout.write(line)
        return line
