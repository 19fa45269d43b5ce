"""The gate: does a report keep to a policy, and is it no worse than a baseline. Pure; no torch.

`judge(report, policy=None, baseline=None, *, source="") -> GateVerdict`
    hold a report against limits (`qtrace.config.Policy`, `load_policy`), an earlier run, or both.
`load_baseline(path) -> Baseline`
    read the numbers of an earlier run.
`update(report, baseline=None, *, factor=None, slack=None) -> Update`
    take a run's numbers into a baseline, which is only ever tightened by what got better; `Update.loosened` names the
    rows that a run got worse in.
`save_baseline(baseline, path)`
    write it, one row a line.
`check_patterns(policy, paths)`
    refuse a pattern that matches none of a model's modules before anything runs; `judge` does so afterwards.
`differences(report, baseline)`
    what is not the same in the two runs' environments.

Every limit is written so that NaN, a number that is missing and a row that is missing do not keep it.
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
