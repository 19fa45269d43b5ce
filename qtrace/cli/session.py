"""From options to a finished run: the config, the models, the lockstep, the report's files, the exit code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from qtrace.cli.options import CompareOptions, PairOptions, RuntimeOptions, given
from qtrace.errors import ExitCode, ForwardError, Interrupted, OutputError, QtraceError
from qtrace.report.records import GateVerdict, Outcome, ReportData

if TYPE_CHECKING:
    from qtrace.cli.screen import Screen
    from qtrace.config import RunConfig
    from qtrace.sources.pair import Pair
    from qtrace.tracing.api import Report

STDOUT = "-"


def configured(pair: PairOptions, compare: CompareOptions, runtime: RuntimeOptions) -> RunConfig:
    """Return the config that the options describe: the named file's, with the options laid over it."""
    from qtrace.config import load_config, merge

    options = given(pair, compare, runtime)
    path = options.pop("config")
    return merge(load_config(path) if path is not None else None, **options)


def loaded(config: RunConfig, screen: Screen) -> Pair:
    """Return the two models and the samples, with a sign of life while they are made."""
    from qtrace.sources.pair import load_pair

    with screen.progress("loading"):
        return load_pair(config)


def keywords(config: RunConfig, pair: Pair) -> dict[str, Any]:
    """Return what `qtrace.trace` takes beside the models and the samples, as the config says."""
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
    """Return the report of the run, and what ended it early, if anything did: then the report is partial."""
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
    from qtrace.engine.onepass import LEAST_COVERAGE

    wanted = config.policy.min_coverage if config.policy is not None else None
    return LEAST_COVERAGE if wanted is None else wanted


def delivered(
    report: ReportData, paths: Sequence[str], screen: Screen, verdict: GateVerdict | None = None
) -> OutputError | None:
    """Write the report, with the gate's verdict, to each path, `-` being stdout; return why that failed, if it did.

    It is written before anything is printed: a pager may keep stdout waiting for long.
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
    """End the command by what was found: an early end first, then too little compared, then `--fail-on`."""
    if ended is not None:
        raise ended
    if report.outcome is Outcome.INCONCLUSIVE:
        raise typer.Exit(ExitCode.INCONCLUSIVE)
    if report.outcome.value in fail_on:
        raise typer.Exit(ExitCode.GATE_FAILED)
