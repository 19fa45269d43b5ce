"""`qtrace diff`: compares two stored traces, with the same rows as a run of both models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

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
from qtrace.cli.run import Failing
from qtrace.cli.session import typed
from qtrace.cli.stored_files import folder_of
from qtrace.errors import UsageError


def diff(
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="The trace of the model that is right.", show_default=False)
    ],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="The trace of the model to judge.", show_default=False)
    ],
    compare: CompareOptions,
    table: TableOptions,
    reports: ReportOptions,
    screen: ScreenOptions,
    fail_on: Annotated[
        list[Failing] | None,
        typer.Option(
            metavar="fault|drift", help="End with exit code 3 on this outcome. Repeatable.", rich_help_panel=RESULTS
        ),
    ] = None,
) -> None:
    """Compare two traces that `qtrace capture` wrote, here or elsewhere; no model is needed.

    To compare a trace with a live model, give it to `qtrace run` as --reference or --candidate trace:FOLDER.

    Example:

    qtrace diff reference.trace candidate.trace
    """
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import configured, delivered, finish, traced
    from qtrace.engine.samples import Sample
    from qtrace.report import check, terminal
    from qtrace.report.diagnosis_panel import outcome
    from qtrace.sources.pair import Pair
    from qtrace.traces import Trace, skeleton
    from qtrace.traces.reader import other_versions

    reference, candidate = folder_of(reference), folder_of(candidate)
    paths = reports.report or []
    check(paths)
    config = configured(PairOptions(), compare, RuntimeOptions())
    out = Screen(screen, only_json="-" in paths)
    with out.progress("opening"):
        traces = Trace(reference), Trace(candidate)
    methods = [trace.manifest.call for trace in traces]
    if methods[0] != methods[1]:
        raise UsageError(
            f"{reference} was captured by --call {methods[0]} and {candidate} by --call {methods[1]}; "
            "capture both by the same"
        )
    pair = Pair(skeleton(traces[0]), skeleton(traces[1]), [Sample()], traces[0].name, traces[1].name, traces[0].name)
    config = config.model_copy(update={"call": methods[0]})
    report, ended = traced(config, pair, out)
    failed = delivered(report, paths, out)
    # Proposed commands begin with `qtrace run`, which accepts traces as well.
    pair_options = PairOptions(reference=f"trace:{reference}", candidate=f"trace:{candidate}")
    call = None if config.call == "forward" else config.call
    view = view_of(table, typed(pair_options, compare, RuntimeOptions(call=call)))
    if reference.resolve() == candidate.resolve():
        out.aside([Text("warning: reference and candidate are one trace: nothing can differ")])
    others = other_versions(traces[0].manifest, traces[1].manifest)
    if others:
        out.aside([Text(f"note: captured under other versions: {', '.join(others)}")])
    out.aside(terminal.warnings(report))
    out.results(terminal.before(report, width=out.width))
    out.results(terminal.results(report, view, width=out.width))
    out.outcome(outcome(report, width=out.width))
    finish(report, ended or failed, [one.value for one in fail_on or ()])
