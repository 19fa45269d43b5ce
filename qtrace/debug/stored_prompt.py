"""The prompt of a stored side: the same commands, over the names of recorded values instead of a frame's."""

from __future__ import annotations

import pdb
import pprint
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from qtrace.debug.commands import GISTS, LEAVING, Commands
from qtrace.debug.recorded_call import RecordedCall
from qtrace.debug.stop import PROMPT, Move, Refusal, Script, Session
from qtrace.debug.values import FoundValue, columns, described
from qtrace.engine.lockstep import REFERENCE
from qtrace.traces.excerpt import Sketch


class StoredPrompt(Commands):
    """The prompt of a side without code. Names that the user assigns are kept beside the trace's names."""

    gists = (
        *GISTS,
        ("a", "what is recorded of the call here: the names that p, pp, whatis and ! know"),
        ("p, pp", "the value of an expression over these names"),
        *LEAVING,
    )

    def __init__(self, number: int, name: str, session: Session, script: Script | None) -> None:
        super().__init__(stdin=cast("IO[str] | None", script))
        self.use_rawinput = script is None
        self.prompt = PROMPT
        self.name = name
        self.move = None
        self._number = number
        self._session = session
        self._own: dict[str, Any] = {}
        self._call: RecordedCall | None = None

    def prompt_at(self, call: RecordedCall) -> Move:
        """Show a call, open the prompt there, and return how it was left."""
        self._call = call
        self.do_a("")
        move = None
        while move is None:
            move = self._asked()
        return move

    def message(self, msg: str) -> None:
        """Show a line."""
        print(msg, file=self.stdout)

    def error(self, msg: str) -> None:
        """Show an error."""
        print("***", msg, file=self.stdout)

    def find(self, call: RecordedCall, expression: str) -> FoundValue:
        """Evaluate an expression over the recorded values of a call, and the user's own names."""
        return call.find(expression, self._own)

    def release(self) -> None:
        """Release the values that were read."""
        self._call = None
        self._own.clear()

    def do_a(self, arg: str) -> None:
        """a

        Show what is recorded of the call here: where it was made, what it received and what it has returned.
        """
        first, *others = self._here.described()
        self.message(f"> {self.name}, stored: {first}")
        for line in others:
            self.message(line)

    def do_p(self, arg: str) -> None:
        """p EXPR

        Show the value of EXPR over the names of what is recorded of the call here, or of one around it.
        """
        self._print(arg, repr)

    def do_pp(self, arg: str) -> None:
        """pp EXPR

        As `p`, laid out over several lines.
        """
        self._print(arg, pprint.pformat)

    def do_whatis(self, arg: str) -> None:
        """whatis EXPR

        Show the type of a value.
        """
        self._print(arg, lambda value: str(type(value)))

    def do_continue(self, arg: str) -> bool:
        """continue

        Let both sides go on to the next breakpoint, or to the end of the run. Short: c.
        """
        return self.leave(Move.CONTINUE)

    do_c = do_cont = do_continue

    def do_quit(self, arg: str) -> bool:
        """quit

        End the run: no hook is left on the live model, and the exit code is 0. Short: q; Ctrl-D does the same.
        """
        return self.leave(Move.QUIT)

    do_q = do_exit = do_quit

    def do_EOF(self, arg: str) -> bool:
        """EOF

        Ctrl-D: as `quit`.
        """
        self.message("")
        return self.leave(Move.QUIT)

    def default(self, line: str) -> None:
        """Run a line of Python; a command of pdb that needs code is refused."""
        word = self.parseline(line)[0]
        if not line.startswith("!") and word and hasattr(pdb.Pdb, f"do_{word}"):
            other = "cand" if self._number == REFERENCE else "ref"
            raise Refusal(
                f"{word}: the {self.name} is a stored trace, so there is no code to list, to step or to walk in; "
                f"`p NAME` shows what is recorded, and `{other}` goes to the live side"
            )
        try:
            with _shown_by(lambda value: None if value is None else self._display(value, repr)):
                self._here.run(line.removeprefix("!").strip(), self._own)
        except Refusal:
            raise
        except BaseException as error:
            self.error(f"{type(error).__name__}: {error}")

    def completedefault(self, *ignored: Any) -> list[str]:
        """Complete the names of recorded values."""
        return [name for name in (*self._here.names, *self._own) if name.startswith(ignored[0])]

    @property
    def _here(self) -> RecordedCall:
        assert self._call is not None
        return self._call

    def _asked(self) -> Move | None:
        """Run commands until one leaves the prompt; return None where Ctrl-C has cancelled one."""
        self.move = None
        try:
            self.cmdloop()
        except KeyboardInterrupt:
            self.message("--KeyboardInterrupt--")
        return self.move

    def _print(self, expression: str, told: Callable[[Any], str]) -> None:
        if not expression.strip():
            raise Refusal(f"an expression is wanted; recorded here: {', '.join(self._here.names) or 'nothing'}")
        try:
            value = self._here.find(expression, self._own).value
        except Refusal:
            raise
        except BaseException as error:
            self.error(f"{type(error).__name__}: {error}")
            return
        self._display(value, told)

    def _display(self, value: Any, told: Callable[[Any], str]) -> None:
        leaves = value.items() if isinstance(value, dict) else [("", value)]
        if any(isinstance(leaf, Sketch) for _, leaf in leaves):
            # The few elements of a sketch could be mistaken for the tensor.
            for line in columns([(name, *described(leaf)) for name, leaf in leaves]):
                self.message(line)
            return
        self.message(told(value))


@contextmanager
def _shown_by(display: Callable[[Any], None]) -> Iterator[None]:
    """Show the value of a line of Python by `display`, without keeping it in `_`."""
    before, sys.displayhook = sys.displayhook, display
    try:
        yield
    finally:
        sys.displayhook = before
