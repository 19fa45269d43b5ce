"""Who answers to whom, once it is known which modules run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtrace.engine.driver import CANDIDATE, REFERENCE
from qtrace.engine.model import Model
from qtrace.engine.onepass import Options, Pass
from qtrace.engine.plan import Plan, better_plan


def plan_by_calls(
    plan: Plan, models: tuple[Model, Model], sample: Any, call: str, renames: Mapping[str, str]
) -> Plan | None:
    """Run both models once; return the plan that knows what they call, None where it finds no more partners.

    A run of the models aligns them in the same way: a module that keeps its name and is no longer called is nobody's
    partner then.
    """
    done = Pass(models, plan, sample, Options(call=call, renames=dict(renames)))
    done.execute()
    for end in done.ends:
        if isinstance(end.error, KeyboardInterrupt):
            raise end.error
    if done.raised():
        return None
    return better_plan(plan, models, (done.calls(REFERENCE), done.calls(CANDIDATE)), renames=renames)
