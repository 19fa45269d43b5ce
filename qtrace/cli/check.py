"""`qtrace check`: judges a run, or a stored report, by limits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from qtrace.cli.session import typed
from qtrace.cli.stored_files import is_report, read_report
from qtrace.errors import ExitCode, ForwardError, Interrupted, OutputError, QtraceError, UsageError
from qtrace.gate import Baseline, Update, differences, judge, load_baseline, save_baseline, update
from qtrace.report.records import GateVerdict, ReportData

if TYPE_CHECKING:
    from qtrace.cli.screen import Screen
    from qtrace.config import Policy, RunConfig

INTRODUCED = "max_peir_local"


@dataclass(frozen=True)
class Decision:
    """The verdict on a report, the change of the baseline, and the reason why it was not written, if so."""

    verdict: GateVerdict
    update: Update | None = None
    refusal: str = ""


class Limits:
    """The policy and the baseline that options name.

    Raises `UsageError` for options that exclude each other and for files that are missing or invalid.
    """

    def __init__(self, options: GateOptions) -> None:
        _check(options)
        self._options = options
        self._policy: Policy | None = None
        self._sources: list[str] = []
        if options.policy is not None:
            from qtrace.config import load_policy

            self._policy = load_policy(options.policy)
            self._sources.append(str(options.policy))
        self._baseline = self._stored()

    def _stored(self) -> Baseline | None:
        path = self._options.baseline
        if path is None:
            return None
        self._sources.append(str(path))
        if not self._options.update_baseline or path.exists():
            return load_baseline(path)
        if not path.parent.is_dir():
            raise OutputError(f"baseline {path}: the folder {path.parent} does not exist; create it first")
        return None

    def applied(self, config: RunConfig) -> RunConfig:
        """Return the config with the effective policy, and with the measurements that it needs."""
        if self._policy is None and config.policy is not None:
            self._policy = config.policy
            self._sources.insert(0, "the config's policy")
        self.require_any()
        policy = self._policy
        if policy is not None and any(INTRODUCED in one.limits() for one in (policy, *policy.overrides.values())):
            if config.compare.local is False:
                raise UsageError(f"{INTRODUCED} limits what each module introduces, and --no-local does not measure it")
            config = config.model_copy(update={"compare": config.compare.model_copy(update={"local": True})})
        return config.model_copy(update={"policy": policy})

    def require_any(self) -> None:
        """Raise `UsageError` where there is neither a policy nor a baseline."""
        if self._policy is None and self._options.baseline is None:
            raise UsageError(
                "there is nothing to check against; give --policy FILE or --baseline FILE, or a config with a policy"
            )

    def decide(self, report: ReportData) -> Decision:
        """Judge a report, and write the baseline where this is requested and permitted."""
        options, source = self._options, ", ".join(self._sources)
        if not options.update_baseline:
            return Decision(judge(report, self._policy, self._held(), source=source))
        new = update(report, self._baseline, factor=options.factor, slack=options.slack)
        loosens = bool(new.loosened) and not options.allow_loosen
        held = self._held() if loosens else new.baseline
        verdict = judge(report, self._policy, held, source=source)
        if self._baseline is not None:
            verdict = dataclasses.replace(verdict, differences=differences(report, self._baseline))
        refusal = ""
        if verdict.inconclusive:
            refusal = "too little was compared"
        elif loosens:
            refusal = "it would be looser than before; --allow-loosen takes that in"
        elif not verdict.passed:
            refusal = "the run does not pass"
        elif options.baseline is not None:
            save_baseline(new.baseline, options.baseline)
        return Decision(verdict, new, refusal)

    def _held(self) -> Baseline | None:
        """Return the baseline with the tolerances of the options."""
        known, options = self._baseline, self._options
        if known is None:
            return None
        factor = known.factor if options.factor is None else options.factor
        slack = known.slack if options.slack is None else options.slack
        return dataclasses.replace(known, factor=factor, slack=slack)


def finish(decision: Decision, ended: QtraceError | None) -> None:
    """End the command: first for an early end of the run, then for too low coverage, then for a violated limit."""
    if ended is not None:
        raise ended
    if decision.verdict.inconclusive:
        raise typer.Exit(ExitCode.INCONCLUSIVE)
    if not decision.verdict.passed or decision.refusal:
        raise typer.Exit(ExitCode.GATE_FAILED)


def _check(options: GateOptions) -> None:
    given = {
        "--update-baseline": options.update_baseline,
        "--allow-loosen": options.allow_loosen,
        "--factor": options.factor is not None,
        "--slack": options.slack is not None,
    }
    for name, is_given in given.items():
        if is_given and options.baseline is None:
            raise UsageError(f"{name} is about a baseline, and none is named; give --baseline FILE")
    if options.allow_loosen and not options.update_baseline:
        raise UsageError("--allow-loosen is about what is written, and nothing is; give --update-baseline as well")


def obtained(
    subject: PairOptions, compare: CompareOptions, runtime: RuntimeOptions, limits: Limits, screen: Screen
) -> tuple[ReportData, ForwardError | Interrupted | None]:
    """Return the report to judge, and the error that ended its run early, if any.

    Raises `UsageError` where there are no limits, or where options for a run are given for a stored report.
    """
    path = subject.config
    if path is not None and is_report(path):
        limits.require_any()
        more = typed(subject, compare, runtime)[1:]
        if more:
            raise UsageError(
                f"{path} is a stored report: it is not run again, so {more[0]} has no effect; leave it out"
            )
        return read_report(path), None
    from qtrace.cli.session import configured, loaded, traced

    config = limits.applied(configured(subject, compare, runtime))
    with screen.models_print_aside():
        pair = loaded(config, screen)
        if config.policy is not None:
            from qtrace.gate import check_patterns

            models = (pair.reference, pair.candidate)
            check_patterns(config.policy, [name for model in models for name, _ in model.named_modules()])
        return traced(config, pair, screen)


@dataclass(frozen=True, kw_only=True)
class SubjectOptions(PairOptions):
    """The subject of the check: two models, as for `qtrace run`, or a stored report."""

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
    """Judge a run, or a stored report, by limits; exit code 3 means that a limit was violated.

    Examples:

    qtrace check pair.yaml --policy policy.yaml

    qtrace check report.json --policy policy.yaml

    qtrace check pair.yaml --baseline baseline.json --update-baseline
    """
    from qtrace.cli.screen import Screen
    from qtrace.cli.session import delivered
    from qtrace.report import formats, terminal
    from qtrace.report.gate_verdict import baseline_lines, gate_line, gate_section

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
