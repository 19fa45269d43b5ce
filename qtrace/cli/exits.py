"""How an error ends a command: one sentence on stderr and an exit code, on request the traceback."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback as tracebacks
from collections.abc import Iterator
from typing import cast

import typer

from qtrace.errors import ExitCode, OutputError, QtraceError

# The base of what typer raises for a wrong command line; it comes from click, or from typer's own copy of it.
CommandLineError = cast("type[Exception]", typer.BadParameter.__mro__[2])


@contextlib.contextmanager
def errors_end_the_command(*, traceback: bool) -> Iterator[None]:
    """Turn what is raised inside into an exit code; with `traceback` show where it was raised first."""
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
    """Return, in a sentence, that stdout takes nothing more, and see that nothing more is written to it.

    What is still buffered would be flushed there again when the process ends.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OutputError(f"stdout: {error.strerror or type(error).__name__}; the results could not be printed")


def _end(message: str, code: ExitCode, traceback: bool) -> None:
    if traceback:
        tracebacks.print_exc()
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(int(code)) from None
