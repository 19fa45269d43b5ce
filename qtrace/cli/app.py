"""The `qtrace` command with its subcommands, and how an error ends a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import qtrace
from qtrace.cli import capture, check, debug, diff, import_trace, modules, ops, report, run, show
from qtrace.cli.command import command
from qtrace.cli.exits import CommandLineError, no_more_stdout
from qtrace.errors import ExitCode

app = typer.Typer(
    name="qtrace",
    help="Find where a wrapped, quantized, cast or ported PyTorch model stops computing what it should.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

for body in (
    run.run,
    debug.debug,
    check.check,
    modules.modules,
    ops.ops,
    report.report,
    capture.capture,
    diff.diff,
    show.show,
    import_trace.importing,
):
    app.command(body.__name__)(command(body))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qtrace {qtrace.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (`sys.argv` by default) and end the process with its exit code."""
    try:
        code = app(args=arguments, prog_name="qtrace", standalone_mode=False)
    except CommandLineError as error:
        wrong: Any = error
        hint = f" (see `{wrong.ctx.command_path} --help`)" if wrong.ctx is not None else ""
        # A choice is checked by pydantic, where that is installed, and typer hands on how that begins its sentence.
        said = wrong.format_message().replace("Value error, ", "")
        typer.echo(f"error: {said}{hint}", err=True)
        code = wrong.exit_code
    except typer.Abort:
        code = ExitCode.ERROR
    except OSError as error:
        # Help and version are typer's to print.
        typer.echo(f"error: {no_more_stdout(error)}", err=True)
        code = ExitCode.ERROR
    sys.exit(code if isinstance(code, int) else ExitCode.DONE)
