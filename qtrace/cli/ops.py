"""`qtrace ops`: compares one module on both sides, operator by operator, and shows where the two part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtrace.cli.options import RESULTS, CompareOptions, PairOptions, RuntimeOptions, ScreenOptions
from qtrace.cli.session import need_models

if TYPE_CHECKING:
    from qtrace.cli.screen import Screen
    from qtrace.report.records.operators import OperatorView

STDOUT = "-"
ENDING = ".json"


def ops(
    pair: PairOptions,
    compare: CompareOptions,
    runtime: RuntimeOptions,
    screen: ScreenOptions,
    module: Annotated[
        str,
        typer.Option(
            metavar="MODULE",
            help="The module to look into, by its path in the reference; <root> is the whole model.",
            show_default=False,
        ),
    ],
    call_index: Annotated[
        int, typer.Option("--call-index", min=0, metavar="N", help="Which of its calls, counted from 0.")
    ] = 0,
    report: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Write all of it as JSON to this file (.json); - is stdout. Repeatable.",
            rich_help_panel=RESULTS,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List every operator of both sides.", rich_help_panel=RESULTS)
    ] = False,
) -> None:
    """Show where two models part inside one module: the last operators that agree, the first that differ, their code.

    The module runs on the arguments that it really receives. Operators are paired by the values that they compute.

    Of the options under Comparison only --rename, --tolerance and --noise-floor have an effect here; of several samples
    the first is used.

    Example:

    qtrace ops configs/qwen3_vl_mask_bug.yaml --module model.language_model.layers.0.self_attn
    """
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import configured, loaded
    from qtrace.report.operator_view import operator_outcome, operator_view

    paths = report or []
    _check(paths)
    config = configured(pair, compare, runtime)
    out = Screen(screen, only_json=STDOUT in paths)
    with out.models_print_aside():
        models = loaded(config, out)
        need_models(models, "ops")
        # Imported only after the options were checked, since it imports torch.
        from qtrace.diagnosis.operators import compare_operators, floors_of

        floors = floors_of(config.compare.tolerance, config.compare.noise_floor)
        with out.progress("recording"):
            view = compare_operators(
                models.reference,
                models.candidate,
                models.samples,
                module,
                call_index=call_index,
                call=config.call,
                rename=config.compare.rename,
                floors=floors,
            )
    _deliver(view, paths, out)
    out.results(operator_view(view, width=out.width, everything=everything))
    out.outcome(operator_outcome(view))


def _check(paths: Sequence[str]) -> None:
    from qtrace.errors import UsageError
    from qtrace.report import check

    for path in paths:
        if path != STDOUT and Path(path).suffix.lower() != ENDING:
            raise UsageError(f"report {path}: the operator view is written as {ENDING}, or as - to stdout")
    check(paths)


def _deliver(view: OperatorView, paths: Sequence[str], out: Screen) -> None:
    from qtrace.errors import OutputError
    from qtrace.report.records.operators import operators_json

    text = operators_json(view) if paths else ""
    for path in paths:
        if path == STDOUT:
            out.json(text)
            continue
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise OutputError(f"report {path}: {reason}; nothing was written, choose another place") from error
