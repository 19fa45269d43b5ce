"""`qtrace debug`: stops both models at the same call and opens a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtrace.cli.options import CompareOptions, PairOptions, RuntimeOptions, ScreenOptions
from qtrace.cli.screen import no_more_stdout
from qtrace.cli.session import need_a_model
from qtrace.errors import Interrupted, QtraceError, UsageError

if TYPE_CHECKING:
    from qtrace.cli.screen import Screen
    from qtrace.config import RunConfig
    from qtrace.debug import Debugger, Script, StopRequest
    from qtrace.sources.pair import Pair
    from qtrace.tracing.api import Report

STOPS = "Where to stop"


def debug(
    pair: PairOptions,
    compare: CompareOptions,
    runtime: RuntimeOptions,
    screen: ScreenOptions,
    breaks: Annotated[
        list[str] | None,
        typer.Option(
            "--break",
            metavar="MODULE[:enter|exit][#call]",
            help="Stop where this module is called and where it returns (or only at one of both, or in one call); "
            "MODULE is a glob over the reference's paths. Repeatable.",
            rich_help_panel=STOPS,
        ),
    ] = None,
    break_when: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Stop where a call has returned and a row of it satisfies this, such as 'peir > 1e-3'. Repeatable.",
            rich_help_panel=STOPS,
        ),
    ] = None,
    commands: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run the prompt's commands from this file, one a line, then quit.",
            rich_help_panel=STOPS,
        ),
    ] = None,
) -> None:
    """Stop both models at the same call and inspect both there: Python's pdb with two sides.

    Without --break and --break-when it finds the module at fault as `qtrace run` does, and stops there. One side may be
    a stored trace (trace:FOLDER): it shows its tensors, and the line that made each call.

    Examples:

    qtrace debug configs/qwen3_vl_mask_bug.yaml

    qtrace debug configs/qwen3_vl_mask_bug.yaml --break 'model.language_model.layers.0.self_attn.o_proj:enter'
    """
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import configured, loaded
    from qtrace.debug import Debugger, Script, stop_request

    stops = stop_request(breaks or (), break_when or ())
    script = Script(commands) if commands is not None else None
    config = configured(pair, compare, runtime)
    _check_terminal(script)
    out = Screen(screen)
    models = loaded(config, out)
    need_a_model(models, "debug")
    index = None
    if not stops:
        stops, index = _culprit(config, models, out)
    if stops:
        debugger = Debugger(stops.breakpoints(models.reference), stops.conditions, script=script)
        try:
            report = _attended(config, models, index, debugger)
        except BrokenPipeError as error:
            raise no_more_stdout(error) from error
        _finish(report, debugger, out)


def _check_terminal(script: Script | None) -> None:
    """Raise `UsageError` where there is no terminal for the prompt."""
    from qtrace.debug import is_off, is_wanted

    if script is None and not is_off() and not is_wanted() and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError(
            "stdin is no terminal, so nobody can type at the prompt; "
            "run it in a terminal, or give --commands FILE with the prompt's commands, one a line"
        )


def _culprit(config: RunConfig, models: Pair, out: Screen) -> tuple[StopRequest, int | None]:
    """Find and show the module at fault, and return the places and the sample to stop at; no place without a fault."""
    from qtrace.cli.session import finish, traced
    from qtrace.debug import StopRequest, culprit, sample_of
    from qtrace.report import terminal
    from qtrace.report.diagnosis_panel import diagnosis, outcome
    from qtrace.report.table import View

    report, ended = traced(config, models, out)
    out.aside(terminal.warnings(report))
    # The prompt replaces the commands that would show more.
    out.results([diagnosis(report, View(), width=out.width)])
    if isinstance(ended, Interrupted):
        raise ended
    paths = {path for path, _ in models.reference.named_modules(remove_duplicate=False)}
    places = culprit(report, paths)
    if not places:
        out.outcome(outcome(report, width=out.width))
        out.aside(["There is no finding to stop at; --break MODULE and --break-when CONDITION stop anywhere."])
        finish(report, ended, ())
    return StopRequest(tuple(places)), sample_of(report)


def _attended(config: RunConfig, models: Pair, sample: int | None, debugger: Debugger) -> Report:
    """Run one pass with the prompt, without a progress bar and without a search for a faulty module."""
    from qtrace.cli.session import keywords
    from qtrace.traces.skeleton import with_one_sample
    from qtrace.tracing.api import trace

    pair, samples = (models.reference, models.candidate), models.samples
    if sample is not None:
        pair, samples = (with_one_sample(pair[0], sample), with_one_sample(pair[1], sample)), [samples[sample]]
    options = {**keywords(config, models), "local": False}
    try:
        return trace(*pair, samples, **options, breakpoints=debugger)
    except Interrupted as error:
        # The results so far are not shown here.
        raise Interrupted("interrupted; the run ended there, and no hook is left") from error


def _finish(report: Report, debugger: Debugger, out: Screen) -> None:
    """Show how the run ended, and end the command, with an error where a breakpoint was not reached."""
    from qtrace.cli.session import finish
    from qtrace.debug import is_off
    from qtrace.report import terminal
    from qtrace.report.diagnosis_panel import outcome

    if debugger.has_quit:
        out.outcome(f"The run {report.error}; no hook is left.")
        return
    unreached = debugger.unreached()
    rest = [line for line in terminal.warnings(report) if not any(said in str(line) for said in unreached)]
    out.aside(rest)
    if is_off():
        out.aside(["PYTHONBREAKPOINT=0 switches breakpoints off: the run did not stop."])
    out.outcome(outcome(report, width=out.width))
    finish(report, QtraceError("; ".join(unreached)) if unreached else None, ())
