"""The prompt of a live side: Python's own pdb on that side's stack, with the commands for both sides."""

from __future__ import annotations

import ctypes
import os
import pdb
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from qtrace.debug.commands import GISTS, LEAVING, Commands
from qtrace.debug.stop import PROMPT, Move, Refusal, Script, Session
from qtrace.debug.values import BUILTINS, FoundValue
from qtrace.engine.live_side import LiveSide, is_in_hook, is_own_code
from qtrace.errors import did_you_mean

VARIABLE = "PYTHONBREAKPOINT"
_OWN = ("", "pdb.set_trace")


@dataclass(frozen=True, slots=True)
class Standing:
    """The place of one side: the frame of its own code that makes the call, that frame's locals, and the callee.

    A stored side has no frame; in place of locals it has the recorded values of the call.
    """

    frame: FrameType | None
    locals: dict[str, Any]
    module: str
    call: int


def is_off() -> bool:
    """Return whether breakpoints are switched off, as `breakpoint()` is by PYTHONBREAKPOINT=0."""
    return os.environ.get(VARIABLE) == "0"


def is_wanted() -> bool:
    """Return whether a debugger other than pdb is to be opened."""
    return not is_off() and os.environ.get(VARIABLE, "") not in _OWN


def stand(ref: Standing, cand: Standing, args: dict[str, Any], out: dict[str, Any]) -> None:
    """Open the debugger that PYTHONBREAKPOINT names; the four are its local names.

    `args` and `out` map names to (the reference's value, the candidate's).
    """
    breakpoint()
    # A debugger that stops at the next line stops here, where the names are still known.
    return


# Modules whose code is not stepped into.
SKIPPED = ("torch", "torch.*", "qtrace", "qtrace.*", "greenlet*")

IN_QTRACE = "in qtrace itself, which calls the model"


class SidePdb(pdb.Pdb):
    """A side's pdb. Its prompt is opened in the side's own greenlet, at an event or between two of them."""

    def __init__(self, side: LiveSide, name: str, script: Script | None) -> None:
        super().__init__(stdin=script, skip=SKIPPED, nosigint=True, readrc=script is None)  # type: ignore[arg-type]
        self.use_rawinput = script is None
        self.prompt = PROMPT
        self.name = name
        self._side = side
        self.move: Move | None = None
        self._steps = False
        self._standing: tuple[FrameType, Any] | None = None
        self._traceback: TracebackType | None = None
        self._selected: int | None = None
        self.reset()
        # Python shares breakpoints in files among all debuggers; this one ignores those of others.
        self.breaks = {}
        # No step ends until one is started: without a frame here it would end everywhere.
        self.botframe = sys._getframe()
        self.disarm()

    # Stepping of the side.

    @property
    def stops_anywhere(self) -> bool:
        """Return whether the step under way ends at the next event, whichever it is."""
        return self._steps and self.stopframe is None

    @property
    def is_armed(self) -> bool:
        """Return whether there is a place to stop in the side's code: a step, or a breakpoint in a file."""
        return self._steps or bool(self.breaks)

    def arm(self) -> None:
        """Trace the side's own frames from here on."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if is_own_code(frame):
                frame.f_trace = self.trace_dispatch
            frame = frame.f_back
        sys.settrace(self.trace_dispatch)

    def disarm(self) -> None:
        """Give up a step that is under way."""
        self._steps = False
        self._set_stopinfo(self.botframe, None, -1)  # type: ignore[attr-defined]

    def stop_here(self, frame: FrameType) -> bool:
        """Return whether a step ends in a frame; never in one that runs for a hook."""
        return bool(super().stop_here(frame)) and not is_in_hook(frame)

    def release(self) -> None:
        """Release frames and breakpoints in files, which Python keeps for all debuggers of the process."""
        for file, lines in list(self.breaks.items()):
            for line in list(lines):
                self.clear_break(file, line)
        self.reset()
        self._standing, self._traceback, self.curframe_locals = None, None, {}

    def stand_at(self, frame: FrameType) -> None:
        """Note the current frame of the side's own code."""
        self._standing, self._traceback, self._selected = (frame, None), None, None

    def interaction(self, frame: Any, traceback: Any) -> None:
        """Pause the side; called by pdb while it traces the side's code, where it would open the prompt."""
        self._standing, self._selected = (frame, traceback), None
        # Later versions of pdb pass the exception itself.
        self._traceback = (
            traceback if isinstance(traceback, TracebackType) else getattr(traceback, "__traceback__", None)
        )
        # Another stack may be traced too, so it may only continue with tracing allowed.
        sys.call_tracing(self._side.pause, ())

    def prompt_here(self) -> Move:
        """Open the prompt on the running stack, which is the side's own, and return how it was left."""
        assert self._standing is not None
        self.botframe = outermost(self._standing[0])
        self.disarm()
        self.move = None
        super().interaction(*self._standing)
        if self.move is None:
            continues = self.stopframe is self.botframe and self.stoplineno == -1
            self.move = Move.QUIT if self.quitting else Move.CONTINUE if continues else Move.STEP
        self._steps = self.move is Move.STEP
        return self.move

    # Frames: those of torch and of qtrace are left out.

    def get_stack(self, f: Any, t: Any) -> Any:
        """Return the side's own frames, the outermost first, and the index of `f` among them."""
        stack, index = super().get_stack(f, t)
        own = [is_own_code(frame) for frame, _ in stack]
        if not any(own):
            return stack, index
        return [entry for entry, keep in zip(stack, own, strict=True) if keep], max(0, sum(own[: index + 1]) - 1)

    def setup(self, f: Any, tb: Any) -> Any:
        """Select again the frame that was selected when the user switched to the other side."""
        selected = self._selected
        done = super().setup(f, tb)
        if selected is not None and selected < len(self.stack):
            self.curindex = selected
            self.curframe = self.stack[selected][0]
            self.curframe_locals = self.curframe.f_locals
        return done

    def forget(self) -> None:
        """Remember the selected frame, and release the stack."""
        if getattr(self, "stack", None):
            self._selected = self.curindex
        super().forget()

    def frames(self) -> tuple[list[tuple[FrameType, int]], int]:
        """Return the side's frames with their lines, the outermost first, and the index of the selected frame."""
        if self.stack:
            return self.stack, self.curindex
        if self._standing is None:
            return [], 0
        stack, index = self.get_stack(self._standing[0], self._traceback)
        return stack, index if self._selected is None else min(self._selected, len(stack) - 1)

    def default(self, line: str) -> None:
        """Run a line of Python; an assignment to a local of the selected frame stays in effect."""
        super().default(line)
        if sys.version_info < (3, 13) and self.curframe is not None:
            # Older interpreters take over changes only in the frame that they trace.
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(self.curframe), ctypes.c_int(0))

    def find(self, expression: str) -> FoundValue:
        """Evaluate an expression in the selected frame, or in the nearest outer frame that knows its names.

        Raises any exception of the expression; `NameError` where no frame knows one of its names.
        """
        code = compile(expression.strip(), "<diff>", "eval")
        stack, index = self.frames()
        own = [entry for entry in stack[: index + 1] if is_own_code(entry[0])]
        if not own:
            raise NameError("no code of the model runs here; `args` and `out` show what the call takes and returns")
        unknown, near = expression.strip(), ""
        for frame, line in reversed(own):
            try:
                value = eval(code, {**frame.f_globals, "__builtins__": BUILTINS}, frame.f_locals)
            except NameError as error:
                unknown = error.name or unknown
                near = near or did_you_mean(unknown, frame.f_locals)
                continue
            return FoundValue(value, place_of(frame, line))
        raise NameError(f"no frame knows {unknown}; {near}")

    def format_stack_entry(self, frame_lineno: Any, lprefix: str = ": ") -> str:
        """Return a frame as pdb shows it, with the side's name."""
        if not is_own_code(frame_lineno[0]):
            return f"{self.name} {IN_QTRACE}"
        return f"{self.name} {super().format_stack_entry(frame_lineno, lprefix)}"


def place_of(frame: FrameType, line: int) -> str:
    """Return a line of a frame as it is shown: the file's name, the line, the function."""
    if not is_own_code(frame):
        return IN_QTRACE
    return f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"


def outermost(frame: FrameType | None = None) -> FrameType:
    """Return the frame in which a stack begins, by default the running one."""
    frame = frame or sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


class Prompt(Commands, SidePdb):
    """A side's pdb with qtrace's own commands; `session` answers the commands that need both sides."""

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
