"""What `qtrace check` judges: a run of two models, or a stored report, for which torch is not needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtrace.cli.options import CompareOptions, PairOptions, RuntimeOptions
from qtrace.cli.stored import is_report, read_report
from qtrace.cli.typed import typed
from qtrace.errors import ForwardError, Interrupted, UsageError
from qtrace.report.records import ReportData

if TYPE_CHECKING:
    from qtrace.cli.gating import Limits
    from qtrace.cli.screen import Screen


def obtained(
    subject: PairOptions, compare: CompareOptions, runtime: RuntimeOptions, limits: Limits, screen: Screen
) -> tuple[ReportData, ForwardError | Interrupted | None]:
    """Return the report to judge, and what ended its run early, if anything did.

    Raises `UsageError` where there are no limits, or where options say how to run what is stored already.
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
