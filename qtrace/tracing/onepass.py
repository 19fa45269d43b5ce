"""One lockstep pass in which one side, or both, comes out of a trace."""

from __future__ import annotations

from typing import Any

from qtrace.engine.model import Model
from qtrace.engine.onepass import Options, Pass
from qtrace.engine.plan import Plan
from qtrace.traces.reader import Trace
from qtrace.traces.sketched import SketchComparer
from qtrace.traces.stored_side import StoredSide

Traces = tuple[Trace | None, Trace | None]


class StoredPass(Pass):
    """A pass whose `traces` take the place of models where there are any; see `qtrace.passes.Pass`."""

    def __init__(
        self, models: tuple[Model, Model], traces: Traces, plan: Plan, sample: Any, options: Options, **more: Any
    ) -> None:
        there = [trace.manifest for trace in traces if trace is not None]
        arguments = all(manifest.arguments for manifest in there)
        super().__init__(models, plan, sample, options, **more)
        if not arguments:
            self.comparison.outputs_only = frozenset(plan.reference_keys.values())
        if any(manifest.sketches for manifest in there):
            self.comparison.comparer = SketchComparer()
        keys = plan.reference_keys, plan.candidate_keys
        sides = list(self.sides)
        for number, trace in enumerate(traces):
            if trace is not None:
                sides[number] = StoredSide(  # type: ignore[call-overload]
                    trace,
                    self.comparison.sample,
                    keys[number],
                    modules=models[number].modules,
                    listener=options.listeners[number],
                    passed=self.comparison.passed if number == 0 else None,
                    arguments=arguments,
                )
        self.sides = (sides[0], sides[1])
        self.comparison.sites = lambda: (self.sides[0].site(), self.sides[1].site())
