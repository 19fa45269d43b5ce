"""How often accumulated evidence alone names the right module first: `python -m bench.accumulated [GLOB]`.

The cases are those of `bench.faults`, and each runs in one pass without forcing: all that two stored traces show.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers

from bench.faults.case import Case
from bench.faults.catalogue import cases
from qtrace.diagnosis.accumulated_errors import accumulated
from qtrace.diagnosis.runner import as_trial
from qtrace.engine.lockstep_pass import Options, Pass
from qtrace.engine.model import Model
from qtrace.engine.plan import make_plan
from qtrace.engine.samples import as_samples
from qtrace.tracing.outcome import CallCounts, is_too_little, sample_outcome


def run(pattern: str = "*") -> list[dict[str, Any]]:
    """Return a row per kind of fault: the cases, and those where the right module, or rightly none, is named first.

    A model that raises has no trace: such cases are left out.
    """
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    counts: dict[str, list[int]] = {}
    for case in cases(pattern):
        named = named_first(case)
        if named is None:
            continue
        right = named[0] in case.answers if named else not case.answers
        row = counts.setdefault(case.fault, [0, 0])
        row[0] += 1
        row[1] += right
    return [{"fault in": fault, "cases": row[0], "right": row[1]} for fault, row in counts.items()]


def named_first(case: Case) -> tuple[str, ...] | None:
    """Return the module that is named first, an empty tuple where nobody is, None where a model raises."""
    pair = case.build()
    models = Model("reference", pair.reference), Model("candidate", pair.candidate)
    plan, options = make_plan(*models), Options(call=case.call, local=False)
    done = Pass(models, plan, as_samples(pair.inputs)[0], options)
    with torch.no_grad():
        done.execute()
    if done.raised():
        return None
    calls = CallCounts(plan, models[0])
    calls.add(done)
    comparison = done.comparison
    if sample_outcome(comparison.final_rows(), comparison.floors).clean or is_too_little(calls.coverage(), options):
        return ()
    found = accumulated(as_trial(comparison, local=False))
    return tuple(suspect.module for suspect in found[:1])


if __name__ == "__main__":
    from bench.tables import show

    show("Named first, by accumulated evidence alone", run(*sys.argv[1:2]))
