"""What `qtrace check` holds a report against, and what becomes of the baseline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from qtrace.cli.options import GateOptions
from qtrace.errors import ExitCode, OutputError, QtraceError, UsageError
from qtrace.gate import Baseline, Update, differences, judge, load_baseline, save_baseline, update
from qtrace.report.records import GateVerdict, ReportData

if TYPE_CHECKING:
    from qtrace.config import Policy, RunConfig

INTRODUCED = "max_peir_local"


@dataclass(frozen=True)
class Decision:
    """The verdict on a report, what updating the baseline would change, and why that was not done, if so."""

    verdict: GateVerdict
    update: Update | None = None
    refusal: str = ""


class Limits:
    """The policy and the baseline that options name.

    Raises `UsageError` for options that do not go together and for files that are missing or wrong.
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
        """Return the config with the policy that holds, and with what that needs to be measured."""
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
        """Raise `UsageError` where there is nothing to check against."""
        if self._policy is None and self._options.baseline is None:
            raise UsageError(
                "there is nothing to check against; give --policy FILE or --baseline FILE, or a config with a policy"
            )

    def decide(self, report: ReportData) -> Decision:
        """Judge a report, and write the baseline where that is asked for and nothing speaks against it."""
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
        """Return the baseline as the options say how strictly it is taken."""
        known, options = self._baseline, self._options
        if known is None:
            return None
        factor = known.factor if options.factor is None else options.factor
        slack = known.slack if options.slack is None else options.slack
        return dataclasses.replace(known, factor=factor, slack=slack)


def finish(decision: Decision, ended: QtraceError | None) -> None:
    """End the command: an early end of the run first, then too little compared, then a limit that was violated."""
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
