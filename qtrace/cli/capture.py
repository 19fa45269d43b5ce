"""`qtrace capture`: runs one model and stores its calls as a trace."""

from __future__ import annotations

import math
import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from qtrace.cli.options import CompareOptions, PairOptions, RuntimeOptions, ScreenOptions
from qtrace.errors import UsageError

TRACE = "Trace"
_SIZE = re.compile(r"([\d.eE+]+?)\s*([KMGT]?)B?", re.IGNORECASE)


class WhichSide(str, Enum):
    """The side that is captured."""

    REFERENCE = "reference"
    CANDIDATE = "candidate"


class Narrower(str, Enum):
    """The dtypes that wider floats can be stored in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def capture(
    pair: PairOptions,
    runtime: RuntimeOptions,
    screen: ScreenOptions,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="The folder that the trace becomes.", rich_help_panel=TRACE),
    ],
    side: Annotated[
        WhichSide,
        typer.Option(metavar="reference|candidate", help="Which model to run.", rich_help_panel=TRACE),
    ] = WhichSide.REFERENCE,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Store only these modules, by the model's own paths: * is one component, ** any number. Repeatable.",
            rich_help_panel=TRACE,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave these modules out. Repeatable.", rich_help_panel=TRACE),
    ] = None,
    outputs_only: Annotated[
        bool,
        typer.Option(
            "--outputs-only", help="Store what modules return, not what they are called with.", rich_help_panel=TRACE
        ),
    ] = False,
    as_: Annotated[
        Narrower | None,
        typer.Option(
            "--as", metavar="float16|bfloat16", help="Store wider floats in this type.", rich_help_panel=TRACE
        ),
    ] = None,
    stats_only: Annotated[
        bool,
        typer.Option(
            "--stats-only",
            help="Store statistics and at most 1024 elements of each tensor.",
            rich_help_panel=TRACE,
        ),
    ] = False,
    max_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Stop, and keep nothing, beyond so much: 500MB, 2GB.", rich_help_panel=TRACE),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a trace that is there already.", rich_help_panel=TRACE)
    ] = False,
) -> None:
    """Run one of the two models and store, call by call, its arguments and its outputs.

    Examples:

    qtrace capture configs/qwen3_vl.yaml --side reference --out reference.trace

    qtrace capture --reference models.py:float_model --inputs models.py:batch --out golden.trace --stats-only
    """
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import configured, loaded
    from qtrace.report.trace_listing import written
    from qtrace.sources.pair import load_reference
    from qtrace.traces.capture import capture
    from qtrace.traces.writer import Form, check_target

    limit = None if max_bytes is None else size(max_bytes)
    check_target(out, replaces=force)
    config = configured(pair, CompareOptions(), runtime)
    shown = Screen(screen)
    if side is WhichSide.REFERENCE:
        with shown.progress("loading"):
            first = load_reference(config)
        model, samples, source = first.model, first.samples, first.source
    else:
        both = loaded(config, shown)
        model, samples, source = both.candidate, both.samples, both.candidate_source
    with shown.progress("capturing") as advance:
        told = capture(
            model,
            samples,
            out,
            Form(arguments=not outputs_only, sketches=stats_only, cast=as_.value if as_ else None, max_bytes=limit),
            only=only or (),
            skip=skip or (),
            call=config.call,
            source=source,
            name=side.value,
            replaces=force,
            seed=config.seed,
            progress=advance,
        )
    shown.aside(Text(f"warning: {warning}") for warning in told.warnings)
    shown.outcome(written(str(out), told.calls, told.tensors, told.bytes))


def size(text: str) -> int:
    """Return the number of bytes for a text like "500MB" or "2e9"; the units are powers of 1000.

    Raises `UsageError` for any other text.
    """
    found = _SIZE.fullmatch(text.strip())
    try:
        amount = float(found[1]) if found else math.nan
    except ValueError:
        amount = math.nan
    if found is None or not 0 < amount < math.inf:
        raise UsageError(f"--max-bytes {text}: expected a size, as in 500MB, 2GB or 1000000")
    return int(amount * 1000 ** " KMGT".index((found[2] or " ").upper()))
