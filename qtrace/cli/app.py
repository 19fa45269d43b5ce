"""The `qtrace` command with its subcommands, and the handling of errors."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import typer

import qtrace
from qtrace.cli import capture, check, debug, diff, import_trace, modules, ops, report, run, show
from qtrace.cli.options import ScreenOptions
from qtrace.cli.screen import CommandLineError, errors_end_the_command, no_more_stdout
from qtrace.errors import ExitCode


def command(body: Callable[..., None]) -> Callable[..., None]:
    """Return `body` in typer's form: option groups are expanded, and errors become exit codes."""
    hints = get_type_hints(body, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(body).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))

    @functools.wraps(body)
    def spread(**values: Any) -> None:
        filled = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        screen = next((group for group in filled.values() if isinstance(group, ScreenOptions)), ScreenOptions())
        with errors_end_the_command(traceback=screen.traceback):
            body(**filled, **values)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


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
        # If pydantic is installed, it checks choices, and typer passes on the beginning of its message.
        said = wrong.format_message().replace("Value error, ", "")
        typer.echo(f"error: {said}{hint}", err=True)
        code = wrong.exit_code
    except typer.Abort:
        code = ExitCode.ERROR
    except OSError as error:
        # typer prints help and version.
        typer.echo(f"error: {no_more_stdout(error)}", err=True)
        code = ExitCode.ERROR
    sys.exit(code if isinstance(code, int) else ExitCode.DONE)
