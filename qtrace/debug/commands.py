"""The prompt's commands for both sides, which work on the prompt of either side."""

from __future__ import annotations

import cmd
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from qtrace.debug.stop import Move, Refusal, Session
from qtrace.engine.lockstep import CANDIDATE, REFERENCE

GISTS = (
    ("diff EXPR", "a value on both sides: what it is, how far apart, how related"),
    ("ref, cand", "go to the other side"),
    ("args, out", "what the call here received, or has returned, on each side"),
    ("row", "all numbers of the call here"),
    ("where2", "both stacks side by side"),
    ("force", "the candidate goes on with the reference's tensors"),
    ("heal", "likewise, at every later call of this module too"),
    ("next-fault", "go on to where the next error is made"),
)
LEAVING = (("c, q", "go on to the next breakpoint; end the run"),)


class Commands(cmd.Cmd):
    """The commands at the prompt of the side with this `name`.

    `message` shows a line and `error` an error, as in pdb. `move` says how the prompt was left.
    """

    name: str
    message: Callable[[str], None]
    error: Callable[[str], None]
    move: Move | None
    gists: tuple[tuple[str, str], ...] = (*GISTS, *LEAVING)
    _number: int
    _session: Session

    def onecmd(self, line: str) -> bool:
        """Run one command; an error in it is shown, and the prompt stays."""
        try:
            return bool(super().onecmd(line))
        except Refusal as refusal:
            self.error(str(refusal))
        except Exception as error:
            self.error(f"{type(error).__name__}: {error}")
        return False

    def parseline(self, line: str) -> Any:
        """Treat the hyphen of `next-fault` as a part of the command."""
        words = line.split()
        return super().parseline("next_fault" if words == ["next-fault"] else line)

    def do_diff(self, arg: str) -> None:
        """diff EXPR [vs EXPR]

        Evaluate EXPR on both sides, and show what it is, how far apart the two are, and how they are related. A live
        side evaluates it in its selected frame or the nearest one outwards that knows its names, a stored one over
        the names of what its call received, or one that it ran inside. With `vs`, the first expression is the
        reference's and the second one the candidate's.
        """
        if not arg.strip():
            raise Refusal("diff wants an expression, as in: diff attention_mask")
        self._show(self._session.difference(arg))

    def do_ref(self, arg: str) -> bool:
        """ref

        Go to the reference: `p`, `up`, `list`, `next` and all else mean the reference then. A stored one has no stack;
        it shows the call that is stored.
        """
        return self._switch(REFERENCE)

    def do_cand(self, arg: str) -> bool:
        """cand

        Go to the candidate; see `ref`.
        """
        return self._switch(CANDIDATE)

    def do_args(self, arg: str) -> None:
        """args

        Show what the call here received on each side, and how far apart that is. (pdb's own `args` is `a`.)
        """
        self._show(self._session.arguments())

    def do_out(self, arg: str) -> None:
        """out

        Show what the call here has returned on each side, and how far apart that is.
        """
        self._show(self._session.outputs())

    def do_row(self, arg: str) -> None:
        """row

        Show the rows of the call here, with every number that is known.
        """
        self._show(self._session.rows())

    def do_where2(self, arg: str) -> None:
        """where2

        Show both stacks side by side, the innermost frame last; > marks the selected ones. Of a stored side it shows
        where the calls were made that it is in.
        """
        self._show(self._session.stacks())

    def do_force(self, arg: str) -> bool:
        """force

        Let the candidate go on with the reference's tensors: the arguments at an entry, the output at an exit. Where
        it hands the very same tensors on to other calls, these get the reference's as well.
        """
        return self._hand_over(heals=False)

    def do_heal(self, arg: str) -> bool:
        """heal

        As `force`, here and at every later call of this module, which are not stopped at any more.
        """
        return self._hand_over(heals=True)

    def do_next_fault(self, arg: str) -> bool:
        """next-fault

        Go on to the next fault: a call whose output differs although its arguments, and all that it called, agree; or
        one that is handed an argument that differs although all that its caller has to do with agrees.
        """
        return self.leave(Move.NEXT_FAULT)

    def do_help(self, arg: str) -> None:
        """help [COMMAND]

        Show the commands, or what one of them does.
        """
        if arg.strip():
            told = inspect.getdoc(getattr(self, f"do_{arg.strip().replace('-', '_')}", None))
            if told is None:
                super().do_help(arg)
            else:
                self.message(told)
            return
        self.message("Commands that know of both sides (help COMMAND tells more):")
        for name, gist in self.gists:
            self.message(f"  {name:<11} {gist}")
        super().do_help("")

    do_h = do_help

    def leave(self, move: Move) -> bool:
        """Leave the prompt by a move."""
        self.move = move
        return True

    def _switch(self, number: int) -> bool:
        if number == self._number:
            self.message(f"this is the {self.name} already")
            return False
        self._session.check_switch(self._number)
        return self.leave(Move.SWITCH)

    def _hand_over(self, *, heals: bool) -> bool:
        self.message(f"passed to the candidate: {self._session.hand_over(heals=heals)}")
        return self.leave(Move.CONTINUE)

    def _show(self, lines: Iterator[str]) -> None:
        # Settings that the model runs under, such as autocast, must not affect the shown values.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            told = list(lines)
        for line in told:
            self.message(line)
