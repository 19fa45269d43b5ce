"""`qtrace modules`: shows the alignment of the two models' modules, and the modules without a partner."""

from __future__ import annotations

from typing import Annotated

import typer

from qtrace.cli.options import RESULTS, CompareOptions, PairOptions, RuntimeOptions, ScreenOptions


def modules(
    pair: PairOptions,
    compare: CompareOptions,
    runtime: RuntimeOptions,
    screen: ScreenOptions,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say how sure each pair is and what each rule means, and list also what was never called.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
) -> None:
    """Show which module of the candidate is aligned with which of the reference, and why a module has no partner."""
    from qtrace.cli.alignment import aligned, alike
    from qtrace.cli.listeners import CallCounter
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import configured, finish, loaded, traced
    from qtrace.report import terminal
    from qtrace.report.coverage import coverage
    from qtrace.report.coverage import modules as listing

    config = configured(pair, compare, runtime)
    out = Screen(screen)
    models = loaded(config, out)
    counters = (CallCounter(), CallCounter())
    report, ended = traced(config, models, out, counters)
    pairings, unmatched = aligned(models.reference, models.candidate, counters, report.unmatched, config.compare.rename)
    out.aside(terminal.warnings(report))
    out.results([terminal.heading(report)])
    likenesses = alike(models.reference, models.candidate, pairings) if explain else None
    out.results(listing(pairings, unmatched, width=out.width, explain=explain, alike=likenesses))
    out.outcome(coverage(report))
    finish(report, ended, ())
