"""`qtrace check`: does a run, or a stored report, keep to its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qtrace.cli.options import (
    RESULTS,
    CompareOptions,
    GateOptions,
    PairOptions,
    ReportOptions,
    RuntimeOptions,
    ScreenOptions,
)


@dataclass(frozen=True, kw_only=True)
class SubjectOptions(PairOptions):
    """What is checked: two models, as for `qtrace run`, or a report of theirs."""

    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG|REPORT",
            help="YAML config of a run, whose section policy holds limits; or a stored report (.json).",
            show_default=False,
        ),
    ] = None


def check(
    subject: SubjectOptions,
    gate: GateOptions,
    compare: CompareOptions,
    runtime: RuntimeOptions,
    reports: ReportOptions,
    screen: ScreenOptions,
    top: Annotated[
        int, typer.Option(min=0, metavar="N", help="Violations to show, 0 for all.", rich_help_panel=RESULTS)
    ] = 20,
) -> None:
    """Hold a run, or a stored report, against limits; exit code 3 says that one was violated.

    Examples:

    qtrace check pair.yaml --policy policy.yaml

    qtrace check report.json --policy policy.yaml

    qtrace check pair.yaml --baseline baseline.json --update-baseline
    """
    from qtrace.cli.gating import Limits, finish
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import delivered
    from qtrace.cli.subject import obtained
    from qtrace.report import formats, terminal
    from qtrace.report.gate import baseline_lines, gate_line, gate_section

    paths = reports.report or []
    if paths:
        # Without a file to write, no format is imported.
        formats.check(paths)
    limits = Limits(gate)
    out = Screen(screen, only_json="-" in paths)
    report, ended = obtained(subject, compare, runtime, limits, out)
    decision = limits.decide(report)
    failed = delivered(report, paths, out, decision.verdict)
    out.aside(terminal.warnings(report))
    out.results([terminal.heading(report)])
    out.results(gate_section(decision.verdict, report, width=out.width, top=top))
    if decision.update is not None:
        out.results(baseline_lines(decision.update, str(gate.baseline), decision.refusal, top=top))
    out.outcome(gate_line(decision.verdict, report))
    finish(decision, ended or failed)
