"""Names the module at fault where the candidate raises: one with an error before that, else the module that raised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qtrace.diagnosis.investigation import Investigation
from qtrace.engine.events import End
from qtrace.engine.lockstep import CANDIDATE, REFERENCE
from qtrace.engine.lockstep_pass import Options, Pass, copied
from qtrace.engine.model import Model, buffers_kept
from qtrace.engine.plan import Plan
from qtrace.errors import first_line
from qtrace.report.records import Finding


def crash_findings(
    models: tuple[Model, Model], plan: Plan, samples: Sequence[Any], options: Options, done: Pass, end: End
) -> list[Finding]:
    """Return the findings for an error that the candidate raised in a pass; none if the reference raises as well.

    If the candidate runs to its end once it receives the reference's tensors at one place, the fault is there. That
    place is searched for if `options.local` allows it.
    """
    sample = samples[done.comparison.sample]
    if not _runs(models[REFERENCE], sample, options.call):
        return []
    alone = raised(plan, done, end)
    if options.local is False:
        return [alone]
    investigation = Investigation(models, plan, sample, options, done.own_random, done.comparison, before=math.inf)
    said = f"the candidate raised {type(end.error).__name__} in {end.module or '<root>'}: {first_line(end.error)}"
    found = [finding for finding in investigation.findings() if finding.confirmed]
    return [_as_raised(finding, alone, said) for finding in found] or [alone]


def _as_raised(finding: Finding, alone: Finding, said: str) -> Finding:
    """Return a finding with the error that was raised; if it names the module that raised, it becomes a `raises`."""
    if finding.kind == "introduces" and finding.module == alone.module:
        return replace(finding, kind=alone.kind, summary=alone.summary, evidence=(*finding.evidence, *alone.evidence))
    return replace(finding, evidence=(*finding.evidence, said))


def _runs(reference: Model, sample: Any, call: str) -> bool:
    """Return whether the reference accepts the inputs on which the candidate raised: only then is that a fault."""
    try:
        with buffers_kept([reference]):
            reference.entry(call, copied(sample))()
    except Exception:
        return False
    return True


def raised(plan: Plan, done: Pass, end: End) -> Finding:
    """Return the finding that names the module that raised."""
    key = plan.candidate_keys.get(end.module)
    assert end.error is not None
    return Finding(
        rank=1,
        module=key if key is not None else end.module,
        call=max(0, done.calls(CANDIDATE)[end.module] - 1),
        kind="raises",
        summary=f"raises {type(end.error).__name__} in the candidate alone: {first_line(end.error)}",
        confirmed=True,
        evidence=(f"the candidate's module is {end.module or '<root>'}",),
    )
