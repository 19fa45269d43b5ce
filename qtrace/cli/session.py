"""Turns options into a finished run: the config, the models, the lockstep, the report's files, the exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from qtrace.cli.options import CompareOptions, PairOptions, RuntimeOptions, given
from qtrace.errors import ExitCode, ForwardError, Interrupted, OutputError, QtraceError, UsageError
from qtrace.report.records import GateVerdict, Outcome, ReportData

if TYPE_CHECKING:
    from qtrace.cli.screen import Screen
    from qtrace.config import RunConfig
    from qtrace.sources.pair import Pair
    from qtrace.tracing.api import Report

# Options with secrets, which are never repeated in proposed commands, since other people may read these.
SECRET = ("token",)


def typed(pair: PairOptions, compare: CompareOptions, runtime: RuntimeOptions) -> tuple[str, ...]:
    """Return the words of the command line that define the run, for repeating it with other words added.

    >>> from pathlib import Path
    >>> typed(PairOptions(config=Path("a.yaml")), CompareOptions(local=False, only=["x.*"]), RuntimeOptions(seed=3))
    ('a.yaml', '--only', 'x.*', '--no-local', '--seed', '3')
    """
    return tuple(word for group in (pair, compare, runtime) for word in _words(group))


def _words(group: Any) -> Iterator[str]:
    hints = get_type_hints(type(group), include_extras=True)
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if value is None or field.name in SECRET:
            continue
        name = _option(field.name, hints[field.name])
        if name is None:
            yield str(value)
        elif isinstance(value, bool):
            yield name if value else name.replace("--", "--no-", 1)
        else:
            for one in value if isinstance(value, list) else [value]:
                yield from (name, str(one))


def _option(field: str, hint: Any) -> str | None:
    """Return the name of a field's option; None for an argument without a name."""
    declared = get_args(hint)[1]
    if not isinstance(declared, OptionInfo):
        return None
    # Inside Annotated, typer holds the first name as the default until it builds the command.
    names = [name for name in (declared.default, *(declared.param_decls or ())) if isinstance(name, str)]
    return names[0].split("/")[0] if names else f"--{field.replace('_', '-')}"


def need_a_model(pair: Pair, command: str) -> None:
    """Raise `UsageError` where both sides of `pair` are stored traces."""
    from qtrace.traces import trace_of

    if trace_of(pair.reference) is not None and trace_of(pair.candidate) is not None:
        raise UsageError(
            f"both sides are stored traces, which hold tensors and no code, and `qtrace {command}` needs a live model "
            "on one side; `qtrace run --inspect MODULE` shows the tensors of two traces side by side"
        )


def need_models(pair: Pair, command: str) -> None:
    """Raise `UsageError` where a side of `pair` is a stored trace: it holds tensors, but no code."""
    from qtrace.traces import trace_of

    for side, model in (("reference", pair.reference), ("candidate", pair.candidate)):
        if trace_of(model) is not None:
            raise UsageError(
                f"the {side} is a stored trace, which holds tensors and no code, and `qtrace {command}` needs both "
                "models; `qtrace run --inspect MODULE` shows the tensors of a trace beside the other side's"
            )


STDOUT = "-"


def configured(pair: PairOptions, compare: CompareOptions, runtime: RuntimeOptions) -> RunConfig:
    """Return the config that the options describe: that of the named file, overridden by the options."""
    from qtrace.config import load_config, merge

    options = given(pair, compare, runtime)
    path = options.pop("config")
    return merge(load_config(path) if path is not None else None, **options)


def loaded(config: RunConfig, screen: Screen) -> Pair:
    """Return the two models and the samples, and show progress while they are made."""
    from qtrace.sources.pair import load_pair

    with screen.progress("loading"):
        return load_pair(config)


def keywords(config: RunConfig, pair: Pair) -> dict[str, Any]:
    """Return the arguments of `qtrace.trace` beside the models and the samples, by the config."""
    return {
        "local": config.compare.local,
        "only": config.compare.only,
        "skip": config.compare.skip,
        "rename": config.compare.rename,
        "tolerance": config.compare.tolerance,
        "noise_floor": config.compare.noise_floor,
        "min_coverage": _least_coverage(config),
        "call": config.call,
        "sources": (pair.reference_source, pair.candidate_source),
    }


def traced(
    config: RunConfig, pair: Pair, screen: Screen, listeners: tuple[Any, Any] = (None, None)
) -> tuple[Report, ForwardError | Interrupted | None]:
    """Return the report of the run, and the error that ended it early, if any: then the report is partial."""
    from qtrace.tracing.api import Report, trace

    with screen.progress("comparing") as advance:
        try:
            report = trace(
                pair.reference,
                pair.candidate,
                pair.samples,
                **keywords(config, pair),
                listeners=listeners,
                progress=advance,
            )
        except (ForwardError, Interrupted) as error:
            if not isinstance(error.report, Report):
                raise
            return error.report, error
    return report, None


def _least_coverage(config: RunConfig) -> float:
    from qtrace.engine.lockstep_pass import LEAST_COVERAGE

    wanted = config.policy.min_coverage if config.policy is not None else None
    return LEAST_COVERAGE if wanted is None else wanted


def delivered(
    report: ReportData, paths: Sequence[str], screen: Screen, verdict: GateVerdict | None = None
) -> OutputError | None:
    """Write the report, with the gate's verdict, to each path, `-` being stdout; return the error of a failed write.

    It is written before anything is printed: a pager may block stdout for long.
    """
    if not paths:
        return None
    from qtrace.report import save
    from qtrace.report.json import json

    failed = None
    for path in paths:
        if path == STDOUT:
            screen.json(json(report, verdict))
            continue
        try:
            save(report, path, verdict)
        except OutputError as error:
            failed = error
    return failed


def finish(report: ReportData, ended: QtraceError | None, fail_on: Iterable[str]) -> None:
    """End the command by the result: first for an early end, then for too low coverage, then for `--fail-on`."""
    if ended is not None:
        raise ended
    if report.outcome is Outcome.INCONCLUSIVE:
        raise typer.Exit(ExitCode.INCONCLUSIVE)
    if report.outcome.value in fail_on:
        raise typer.Exit(ExitCode.GATE_FAILED)
