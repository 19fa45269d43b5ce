"""The common options of the commands, in groups; a command names the groups that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qtrace.report.table import View

MODELS = "Models and inputs"
COMPARE = "Comparison"
RUNTIME = "How the models run"
RESULTS = "Results"
LIMITS = "Limits"


class Order(str, Enum):
    """The order of a table's rows."""

    RANK = "rank"
    EXECUTION = "execution"


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """The models and the inputs; the fields are those of `qtrace.config.merge`."""

    config: Annotated[
        Path | None,
        typer.Argument(help="YAML config of the run; options below replace what it says.", show_default=False),
    ] = None
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The model that is right: package.module:name, file.py:name, hf:ID or config:FOLDER.",
            rich_help_panel=MODELS,
        ),
    ] = None
    candidate: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="The model to judge; a SPEC as for --reference.", rich_help_panel=MODELS),
    ] = None
    wrap: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Make the candidate from the reference by this wrapper (tico, dtype, …).",
            rich_help_panel=MODELS,
        ),
    ] = None
    wrap_args: Annotated[
        list[str] | None,
        typer.Option(
            "--wrap-arg",
            metavar="KEY=VALUE",
            help="An argument of the wrapper. Repeatable.",
            rich_help_panel=MODELS,
        ),
    ] = None
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="What both are run on: a callable's SPEC, or a .safetensors, .npz or .pt file.",
            rich_help_panel=MODELS,
        ),
    ] = None
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text, through the reference's processor. Repeatable.", rich_help_panel=MODELS),
    ] = None
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Image, through the reference's processor. Repeatable.",
            rich_help_panel=MODELS,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Making and running the models; the fields are those of `qtrace.config.merge`."""

    seed: Annotated[int | None, typer.Option(help="Seed of random weights and inputs.", rich_help_panel=RUNTIME)] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, …", rich_help_panel=RUNTIME)] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the models' weights: float32, bfloat16, float16 or float64.",
            rich_help_panel=RUNTIME,
        ),
    ] = None
    threads: Annotated[int | None, typer.Option(help="Threads of torch.", rich_help_panel=RUNTIME)] = None
    call: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Call this method instead of forward.", rich_help_panel=RUNTIME),
    ] = None
    cache_dir: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where downloaded weights are kept.", rich_help_panel=RUNTIME),
    ] = None
    token: Annotated[str | None, typer.Option(help="Access token of the model hub.", rich_help_panel=RUNTIME)] = None
    revision: Annotated[str | None, typer.Option(help="Revision of a model on the hub.", rich_help_panel=RUNTIME)] = (
        None
    )
    trust_remote_code: Annotated[
        bool | None,
        typer.Option(
            "--trust-remote-code",
            help="Run code that comes with a model from the hub.",
            rich_help_panel=RUNTIME,
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The extent and the strictness of the comparison; the fields are those of `qtrace.config.merge`."""

    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Compare only these modules: * is one path component, ** any number. Repeatable.",
            rich_help_panel=COMPARE,
        ),
    ] = None
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave these modules out. Repeatable.", rich_help_panel=COMPARE),
    ] = None
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="The candidate's module OLD answers to the reference's NEW, with what is below; * is one component. "
            "Repeatable.",
            rich_help_panel=COMPARE,
        ),
    ] = None
    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="PEIR",
            help="PEIR up to which tensors agree, or auto: rounding noise of their types.",
            rich_help_panel=COMPARE,
        ),
    ] = None
    noise_floor: Annotated[
        str | None,
        typer.Option(
            metavar="PEIR",
            help="PEIR that is noise in any case; auto: none; measured: what the reference itself shows.",
            rich_help_panel=COMPARE,
        ),
    ] = None
    local: Annotated[
        bool | None,
        typer.Option(
            "--local/--no-local",
            help="Also measure the error that each module makes by itself; without it, one pass only.",
            rich_help_panel=COMPARE,
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The length and the order of the ranked table."""

    top: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Rows to show, 0 for all; 20 by default, all in execution order.",
            rich_help_panel=RESULTS,
        ),
    ] = None
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Rank by this: introduced (the default where it was measured), received, accumulated (PEIR), sqnr, "
            "cosine, rel_l2, mean, max, …, module, order.",
            rich_help_panel=RESULTS,
        ),
    ] = None
    order: Annotated[Order, typer.Option(help="Worst row first, or as the model runs.", rich_help_panel=RESULTS)] = (
        Order.RANK
    )
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Every row, also those that only inherit their error or are equal; every finding in full.",
            rich_help_panel=RESULTS,
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The destinations of a report beside the terminal."""

    report: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Write the report, in the format of the ending (.json, .html, .md, .csv, .xml for JUnit, .sarif); "
            "- is JSON on stdout. Repeatable.",
            rich_help_panel=RESULTS,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ScreenOptions:
    """The output on the terminal; every command has these options."""

    traceback: Annotated[
        bool,
        typer.Option("--traceback", help="Show an error's whole traceback.", rich_help_panel=RESULTS),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Say only the outcome: no tables, progress or warnings.", rich_help_panel=RESULTS),
    ] = False
    no_color: Annotated[
        bool,
        typer.Option("--no-color", help="No colours; the variable NO_COLOR does the same.", rich_help_panel=RESULTS),
    ] = False


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """The limits that a report is judged by."""

    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with the limits; replaces the config's.", rich_help_panel=LIMITS),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier run's numbers: no row may get worse.", rich_help_panel=LIMITS),
    ] = None
    update_baseline: Annotated[
        bool,
        typer.Option(
            "--update-baseline",
            help="Take this run's numbers into the baseline, or write it anew.",
            rich_help_panel=LIMITS,
        ),
    ] = False
    allow_loosen: Annotated[
        bool,
        typer.Option(
            "--allow-loosen", help="Let --update-baseline take in rows that got worse.", rich_help_panel=LIMITS
        ),
    ] = False
    factor: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            metavar="RATIO",
            help="How many times worse than in the baseline a row may get; 1.25, or what the baseline says.",
            rich_help_panel=LIMITS,
            show_default=False,
        ),
    ] = None
    slack: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="AMOUNT",
            help="By how much more a row may get worse; 0, or what the baseline says.",
            rich_help_panel=LIMITS,
            show_default=False,
        ),
    ] = None


def view_of(table: TableOptions, typed: Sequence[str] = ()) -> View:
    """Return the view of a report's rows; raises `UsageError` for an unknown `--sort`.

    `typed` are the words of the command line that define the run.
    """
    from qtrace.report.columns import sort_key
    from qtrace.report.table import View

    sort = None if table.sort is None else sort_key(table.sort)
    return View(sort, table.order is Order.EXECUTION, table.top, table.everything, tuple(typed))


def given(*groups: Any) -> dict[str, Any]:
    """Return the fields of option groups by name; a repeatable option that was not given is empty."""
    values: dict[str, Any] = {}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            repeatable = value is None and "list[str]" in str(field.type)
            values[field.name] = () if repeatable else value
    return values
