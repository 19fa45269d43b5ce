"""The prompt of a live side: pdb on that side's stack, with the commands that know of the other one."""

from __future__ import annotations

import pdb
from typing import Any

from qtrace.debug.commands import GISTS, LEAVING, Commands
from qtrace.debug.script import Script
from qtrace.debug.session import Refusal, Session
from qtrace.debug.sidepdb import SidePdb
from qtrace.engine.live_side import LiveSide


class Prompt(Commands, SidePdb):
    """A side's pdb with qtrace's own commands; `session` answers what takes more than one side."""

    gists = (*GISTS, ("s, n", "step in the side that is current; the other one stands still"), *LEAVING)

    def __init__(self, side: LiveSide, number: int, name: str, session: Session, script: Script | None) -> None:
        super().__init__(side, name, script)
        self._number = number
        self._session = session

    complete_diff = pdb.Pdb._complete_expression

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
        raise Refusal("the models cannot be started again from here; quit, and start the command again")

    do_restart = do_run

    def do_commands(self, arg: str) -> None:
        """commands

        Not here: pdb's command lists for breakpoints do not know of two sides.
        """
        raise Refusal("command lists for breakpoints are not available here")
