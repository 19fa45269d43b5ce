"""Value types for what is known of the models before and beside the comparison: calls, and who answers to whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from qtrace.report.records.rows import TensorSpec


@dataclass(frozen=True, slots=True)
class ValueTrace:
    """One argument or output of one call of one side.

    `name` is the parameter's name or the output path ("" for a single tensor); min and max are in `spec`;
    `values` is the full tensor as text, where it was asked for.
    """

    name: str
    spec: TensorSpec
    mean: float | None = None
    stddev: float | None = None
    values: str | None = None


@dataclass(frozen=True, slots=True)
class CallTrace:
    """One call of one side's module, with everything that went in and came out.

    `side` is "reference" or "candidate", `module` the path in that side's own names, `facts` what the module
    knows of its quantization ({"obs_act_in.scale": "0.0123"}).
    """

    side: str
    module: str
    type: str
    call: int
    arguments: tuple[ValueTrace, ...]
    outputs: tuple[ValueTrace, ...]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pairing:
    """A candidate module that answers to a reference module.

    `rule` made the pair ("exact", "name_attribute", "stripped"), `confidence` is "high" or "low";
    `reference_calls` and `candidate_calls` are None where the models were not run.
    """

    reference: str
    candidate: str
    rule: str
    confidence: str = "high"
    reference_type: str = ""
    candidate_type: str = ""
    reference_calls: int | None = None
    candidate_calls: int | None = None
