"""The prompt of one side: pdb on that side's stack, with commands that know of the other one."""

from __future__ import annotations

import inspect
import pdb
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from qtrace.debug.script import Script
from qtrace.debug.sidepdb import Move, SidePdb
from qtrace.lockstep import CANDIDATE, REFERENCE
from qtrace.probe import LiveSide

_GISTS = (
    ("diff EXPR", "a value on both sides: what it is, how far apart, how related"),
    ("ref, cand", "go to the other side's stack"),
    ("args, out", "what the call here was handed, or has returned, on each side"),
    ("row", "all numbers of the call here"),
    ("where2", "both stacks side by side"),
    ("force", "the candidate goes on with the reference's tensors"),
    ("heal", "likewise, at every later call of this module too"),
    ("next-fault", "go on to where the next error is made"),
    ("s, n", "step in the side that is current; the other one stands still"),
    ("c, q", "go on to the next breakpoint; end the run"),
)


class Session(Protocol):
    """What the commands ask of whoever holds both sides; each yields lines to show."""

    def other(self, side: int) -> str | None:
        """Return why the other side cannot be switched to; None where it can."""

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

    def hand_over(self, *, heals: bool) -> str | None:
        """Hand over the reference's tensors; return why not, if so."""


class Prompt(SidePdb):
    """A side's pdb with qtrace's own commands; `session` answers what takes more than one side."""

    def __init__(self, side: LiveSide, number: int, name: str, session: Session, script: Script | None) -> None:
        super().__init__(side, name, script)
        self._number = number
        self._session = session

    def onecmd(self, line: str) -> bool:
        """Run one command; what goes wrong in it is told, and the prompt stays."""
        try:
            return bool(super().onecmd(line))
        except Exception as error:
            self.error(f"{type(error).__name__}: {error}")
            return False

    def parseline(self, line: str) -> Any:
        """Take the hyphen of `next-fault` for a part of the command."""
        words = line.split()
        return super().parseline("next_fault" if words == ["next-fault"] else line)

    def do_diff(self, arg: str) -> None:
        """diff EXPR [vs EXPR]

        Evaluate EXPR on both sides, in the selected frame of each or the nearest one outwards that knows its names,
        and show what it is, how far apart the two are, and how they are related. With `vs`, the first expression is
        the reference's and the second one the candidate's.
        """
        if not arg.strip():
            self.error("diff wants an expression, as in: diff attention_mask")
            return
        self._show(self._session.difference(arg))

    def do_ref(self, arg: str) -> bool:
        """ref

        Go to the reference's stack: `p`, `up`, `list`, `next` and all else mean the reference then.
        """
        return self._switch(REFERENCE)

    def do_cand(self, arg: str) -> bool:
        """cand

        Go to the candidate's stack.
        """
        return self._switch(CANDIDATE)

    def do_args(self, arg: str) -> None:
        """args

        Show what the call here was handed on each side, and how far apart that is. (pdb's own `args` is `a`.)
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

        Show both stacks side by side, the innermost frame last; > marks the selected ones.
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
        return self._leave(Move.NEXT_FAULT)

    def do_continue(self, arg: str) -> Any:
        """continue

        Let both sides go on to the next breakpoint, or to the end of the run. Short: c.
        """
        return super().do_continue(arg)

    do_c = do_cont = do_continue

    def do_quit(self, arg: str) -> Any:
        """quit

        End the run: no hook is left on the models, and the exit code is 0. Short: q; Ctrl-D does the same.
        """
        return super().do_quit(arg)

    do_q = do_exit = do_quit

    def do_step(self, arg: str) -> Any:
        """step

        Run the current line of this side, into the functions that it calls; the other side stands still. Torch's own
        code is not stepped into. Where the module is left, or a module of torch's is called, both sides come to the
        next call or return. Short: s.
        """
        return super().do_step(arg)

    do_s = do_step

    def do_next(self, arg: str) -> Any:
        """next

        Run the current line of this side to its end; the other side stands still, except for the calls of modules in
        that line, which both go through. Where the module is left, both sides come to the next return. Short: n.
        """
        return super().do_next(arg)

    do_n = do_next

    def do_run(self, arg: str) -> None:
        """run

        Not here: leave by `quit`, and start the command again.
        """
        self.error("the models cannot be started again from here; quit, and start the command again")

    do_restart = do_run

    def do_commands(self, arg: str) -> None:
        """commands

        Not here: pdb's command lists for breakpoints do not know of two sides.
        """
        self.error("command lists for breakpoints are not available here")

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
        for name, gist in _GISTS:
            self.message(f"  {name:<11} {gist}")
        super().do_help("")

    do_h = do_help
    complete_diff = pdb.Pdb._complete_expression

    def _switch(self, number: int) -> bool:
        if number == self._number:
            self.message(f"this is the {self.name} already")
            return False
        reason = self._session.other(self._number)
        if reason is not None:
            self.error(reason)
            return False
        return self._leave(Move.SWITCH)

    def _hand_over(self, *, heals: bool) -> bool:
        reason = self._session.hand_over(heals=heals)
        if reason is not None:
            self.error(reason)
            return False
        return self._leave(Move.CONTINUE)

    def _leave(self, move: Move) -> bool:
        self.move = move
        return True

    def _show(self, lines: Iterator[str]) -> None:
        # What the model runs under, such as autocast, is not for what is told of it.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            told = list(lines)
        for line in told:
            self.message(line)
