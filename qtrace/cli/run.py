"""`qtrace run`: runs both models in lockstep, and shows where they part."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from qtrace.cli.options import (
    RESULTS,
    CompareOptions,
    PairOptions,
    ReportOptions,
    RuntimeOptions,
    ScreenOptions,
    TableOptions,
    view_of,
)
from qtrace.cli.session import typed


class TraceSide(str, Enum):
    """The sides whose calls `--show-trace` lists."""

    REFERENCE = "reference"
    CANDIDATE = "candidate"
    BOTH = "both"


class Failing(str, Enum):
    """The outcomes that `--fail-on` can end with exit code 3."""

    FAULT = "fault"
    DRIFT = "drift"


def run(
    pair: PairOptions,
    compare: CompareOptions,
    runtime: RuntimeOptions,
    table: TableOptions,
    reports: ReportOptions,
    screen: ScreenOptions,
    fail_on: Annotated[
        list[Failing] | None,
        typer.Option(
            metavar="fault|drift",
            help="End with exit code 3 on this outcome. Repeatable.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    show_trace: Annotated[
        TraceSide | None,
        typer.Option(
            metavar="SIDE",
            help="List every call of the reference, the candidate or both, with statistics of its values.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    inspect: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="List all values of these modules. Repeatable.", rich_help_panel=RESULTS),
    ] = None,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot/--no-plot",
            help="Plot the final outputs against each other (needs the extra plot).",
            rich_help_panel=RESULTS,
        ),
    ] = False,
) -> None:
    """Run two models on the same inputs in lockstep and show where they part, worst module first.

    Examples:

    qtrace run configs/qwen3_vl_mask_bug.yaml

    qtrace run --reference models.py:float_model --candidate models.py:quantized --inputs models.py:batch
    """
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import configured, delivered, finish, loaded, traced
    from qtrace.report import check, terminal
    from qtrace.report.diagnosis_panel import outcome
    from qtrace.report.trace_listing import quantizer_listing

    view, paths = view_of(table, typed(pair, compare, runtime)), reports.report or []
    check(paths)
    config = configured(pair, compare, runtime)
    out = Screen(screen, only_json="-" in paths)
    with out.models_print_aside():
        models = loaded(config, out)
        # Imported only after the options were checked, since it imports torch.
        from qtrace.cli.listeners import Watch

        watch = Watch((models.reference, models.candidate), _sides(show_trace), inspect or (), plot=plot)
        report, ended = traced(config, models, out, watch.listeners)
    failed = delivered(report, paths, out)
    out.aside(terminal.warnings(report))
    out.results(terminal.before(report, width=out.width))
    out.results(watch.listing(out.width))
    out.results(quantizer_listing(report.rows, inspect or (), width=out.width))
    out.results(terminal.results(report, view, width=out.width))
    out.results(watch.plot(out.width))
    out.outcome(outcome(report, width=out.width))
    finish(report, ended or failed, [one.value for one in fail_on or ()])


def _sides(show_trace: TraceSide | None) -> tuple[str, ...]:
    if show_trace is None:
        return ()
    return ("reference", "candidate") if show_trace is TraceSide.BOTH else (show_trace.value,)
