"""`qtrace import`: makes another runtime's tensors a trace that can be compared with the reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qtrace.cli.options import RESULTS, ScreenOptions
from qtrace.cli.stored_files import folder_of


def importing(
    tensors: Annotated[
        Path,
        typer.Argument(
            metavar="TENSORS",
            help="A .npz, .safetensors, .pt or Polygraphy .json file, or a folder of such or .npy files.",
            show_default=False,
        ),
    ],
    screen: ScreenOptions,
    reference: Annotated[
        Path, typer.Option(metavar="TRACE", help="The reference's trace, captured on the same inputs.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder that the trace becomes.")],
    mapping: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="YAML: the tensor's name: the reference's module (#call, :output)."),
    ] = None,
    by_value: Annotated[
        bool, typer.Option("--by-value/--no-by-value", help="Recognise tensors by their values, where names do not.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a trace that is there already.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="List every pair and the rule that made it.", rich_help_panel=RESULTS)
    ] = False,
) -> None:
    """Make a trace of the tensors that another runtime has written: ONNX Runtime, an accelerator, another framework.

    Example:

    qtrace import onnx.npz --reference reference.trace --out onnx.trace

    qtrace diff reference.trace onnx.trace
    """
    from qtrace.cli.screen import Screen
    from qtrace.report.trace_listing import imported
    from qtrace.traces import Trace
    from qtrace.traces.foreign_tensors import import_trace
    from qtrace.traces.mapping import read_mapping
    from qtrace.traces.writer import check_target

    shown = Screen(screen)
    check_target(out, replaces=force)
    given = {} if mapping is None else read_mapping(mapping)
    with shown.progress("importing"):
        found = import_trace(tensors, Trace(folder_of(reference)), out, given=given, by_value=by_value, replaces=force)
    pairs = [(str(match.place), match.name, match.rule) for match in found.matches]
    shown.results(imported(pairs, list(map(str, found.alone)), len(found.unused), width=shown.width, explain=explain))


importing.__name__ = "import"
