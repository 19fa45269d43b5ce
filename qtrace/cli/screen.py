"""Prints results on stdout, all else on stderr: widths, progress bar, errors as one sentence with an exit code."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import traceback as tracebacks
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, cast

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from qtrace.cli.options import ScreenOptions
from qtrace.errors import ExitCode, OutputError, QtraceError
from qtrace.report.text import visible

# The base class of typer's errors for a wrong command line; it is from click, or from typer's own copy of it.
CommandLineError = cast("type[Exception]", typer.BadParameter.__mro__[2])


@contextlib.contextmanager
def errors_end_the_command(*, traceback: bool) -> Iterator[None]:
    """Turn an exception from inside into an exit code; with `traceback` show its traceback first."""
    try:
        yield
    except (typer.Exit, typer.Abort, CommandLineError):
        raise
    except QtraceError as error:
        _end(str(error), error.exit_code, traceback)
    except KeyboardInterrupt:
        _end("interrupted", ExitCode.INTERRUPTED, traceback)
    except Exception as error:
        said = str(error).strip().split("\n")[0]
        name = f"{type(error).__name__}: {said}" if said else type(error).__name__
        hint = "" if traceback else "; --traceback shows where, please report it"
        _end(f"{name}; this is a bug in qtrace{hint}", ExitCode.ERROR, traceback)


def no_more_stdout(error: OSError) -> OutputError:
    """Return the error for a stdout that accepts no more text, and prevent further writes to it.

    Otherwise the end of the process would flush buffered text to it again.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OutputError(f"stdout: {error.strerror or type(error).__name__}; the results could not be printed")


def _end(message: str, code: ExitCode, traceback: bool) -> None:
    if traceback:
        tracebacks.print_exc()
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(int(code)) from None


WIDTH_OF_A_FILE = 120
# Substitutes for characters that the terminal lacks, one character each so that columns stay aligned.
STAND_INS = str.maketrans("█─…↓↑→←·•∞", "#-~v^><..8")
PLAIN = "qtrace.plain"

Advance = Callable[[int, int], None]


class Screen:
    """Where a command prints.

    With `only_json` stdout is reserved for a report's JSON, and the outcome goes to stderr. With `quiet` only the
    outcome and errors are printed.
    """

    def __init__(self, options: ScreenOptions, *, only_json: bool = False) -> None:
        self.quiet = options.quiet
        self.only_json = only_json
        self._stdout = sys.stdout
        self._results = _console(sys.stdout, options)
        self._asides = _console(sys.stderr, options)

    @property
    def width(self) -> int:
        """Return the width that tables are laid out for."""
        return self._results.width

    def results(self, parts: Iterable[RenderableType]) -> None:
        """Print tables and their captions."""
        if not (self.quiet or self.only_json):
            self._print(parts)

    def outcome(self, part: RenderableType) -> None:
        """Print the outcome, last."""
        if self.only_json:
            self.aside([part])
        else:
            self._print([part])

    def json(self, text: str) -> None:
        """Write a report's JSON to stdout as it is."""
        with self._reader_may_leave():
            self._stdout.write(text)

    def aside(self, parts: Iterable[RenderableType]) -> None:
        """Print on stderr text that is no result: warnings and hints. Nothing when quiet."""
        if not self.quiet:
            for part in parts:
                self._asides.print(part)

    def _print(self, parts: Iterable[RenderableType]) -> None:
        with self._reader_may_leave():
            for part in parts:
                self._results.print(part)

    @contextlib.contextmanager
    def _reader_may_leave(self) -> Iterator[None]:
        """Let a closed pipe (`| head`) end the printing, but not the command: its exit code still counts.

        Raises `OutputError` where stdout accepts no text for any other reason, such as a full disk.
        """
        try:
            yield
            self._stdout.flush()
        except OSError as error:
            unprintable = no_more_stdout(error)
            if not isinstance(error, BrokenPipeError):
                raise unprintable from error

    def models_print_aside(self) -> contextlib.AbstractContextManager[object]:
        """Keep the output of models and toolkits off stdout where stdout is reserved for JSON."""
        return contextlib.redirect_stdout(sys.stderr) if self.only_json else contextlib.nullcontext()

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """Show a progress bar on stderr during a run; nothing where stderr is no terminal, or when quiet."""
        if self.quiet or not self._asides.is_terminal:
            yield lambda done, total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._asides, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


class _Console(Console):
    """A console that lets the command handle a closed pipe, where rich would end the process.

    It escapes control characters: a name in a trace or a report may have been chosen to control the terminal.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of the printed text, with each control character escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """Raise the exception again."""
        raise BrokenPipeError


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Return, for the codec, the substitutes for characters that the terminal lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wanted = error.object[error.start : error.end].translate(STAND_INS)
    return "".join(char if char.isascii() else "?" for char in wanted), error.end


def _console(file: TextIO, options: ScreenOptions) -> Console:
    if hasattr(file, "reconfigure"):
        codecs.register_error(PLAIN, _plainly)
        file.reconfigure(errors=PLAIN)
    return _Console(file=file, width=_width(file), no_color=options.no_color or None, highlight=False, soft_wrap=False)


def _width(file: TextIO) -> int | None:
    """Return None where rich finds the width by itself; a file or a pipe has a fixed, greater width."""
    streams = (file, sys.stdin, sys.stderr)
    if os.environ.get("COLUMNS") or any(stream is not None and stream.isatty() for stream in streams):
        return None
    return WIDTH_OF_A_FILE
