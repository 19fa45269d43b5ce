"""The gate: judges a report by a policy, by a baseline, or by both. Pure; no torch.

`judge(report, policy=None, baseline=None, *, source="") -> GateVerdict`
    judge a report by limits (`qtrace.config.Policy`, `load_policy`), by an earlier run, or by both.
`load_baseline(path) -> Baseline`
    read the numbers of an earlier run.
`update(report, baseline=None, *, factor=None, slack=None) -> Update`
    take a run's numbers into a baseline, which only better numbers tighten; `Update.loosened` names the rows that got
    worse.
`save_baseline(baseline, path)`
    write it, one row a line.
`check_patterns(policy, paths)`
    refuse a pattern that matches no module of a model, before anything runs; `judge` does so afterwards.
`differences(report, baseline)`
    the differences between the two runs' environments.

NaN, a missing number and a missing row violate every limit.
"""

from qtrace.gate.baseline import Baseline, BaselineRow, differences, load_baseline, save_baseline
from qtrace.gate.judgement import judge
from qtrace.gate.policy import check_patterns
from qtrace.gate.regression import Update, update

__all__ = [
    "Baseline",
    "BaselineRow",
    "Update",
    "check_patterns",
    "differences",
    "judge",
    "load_baseline",
    "save_baseline",
    "update",
]
