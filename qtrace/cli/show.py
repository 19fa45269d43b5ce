"""`qtrace show`: lists the contents of a stored trace, and the values of chosen modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtrace.cli.options import RESULTS, ScreenOptions
from qtrace.cli.stored_files import folder_of


def show(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="The folder of the trace.", show_default=False)],
    screen: ScreenOptions,
    module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Print all values of these modules: * is one path component, ** any number. Repeatable.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
) -> None:
    """List the contents of a trace, without reading its tensors; with --module print values.

    Examples:

    qtrace show reference.trace

    qtrace show reference.trace --module '**.o_proj'
    """
    from qtrace.cli.screen import Screen
    from qtrace.report.notes import spec
    from qtrace.report.text import one_line
    from qtrace.report.trace_listing import HeldModule, contents, returned, trace_listing
    from qtrace.traces import Trace
    from qtrace.traces.reader import contents_of, facts_of

    out = Screen(screen)
    opened = Trace(folder_of(trace))
    if module:
        from qtrace.cli.recorder import recorded

        for number, calls in enumerate(recorded(opened, module)):
            name = "trace" if len(opened.manifest.samples) == 1 else f"sample {number}"
            out.results(trace_listing(calls, name, width=out.width))
        return
    held = [
        HeldModule(
            one_line(one.module), one_line(one.type), one.calls, returned(list(map(spec, one.outputs))), one.bytes
        )
        for one in contents_of(opened.manifest)
    ]
    facts = [(name, one_line(fact)) for name, fact in facts_of(opened.manifest)]
    out.results(contents(facts, held, width=out.width))
