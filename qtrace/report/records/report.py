"""The report of one run and the gate's verdict on it: the compared calls, the others with reasons, the outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qtrace.report.records.rows import Argument, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One violated limit.

    `module`, `call`, `output` and `sample` name the row; `module` is None for a limit of the whole run. `column` is the
    judged value: a row's column ("peir", "sqnr_db", …), or "coverage", "outcome", "unmatched", "missing", "status".
    `observed` is None where there is no number; `reason` always says why the limit is violated. `rule` names the line
    that set the limit ("max_peir", "overrides model.visual.**: max_peir", "baseline"). `severity` is how many times the
    limit is exceeded (inf where there is no number); `finding` is the rank of the finding that explains it.
    """

    module: str | None
    column: str
    rule: str
    reason: str
    observed: float | None = None
    limit: float | None = None
    call: int = 0
    output: str = ""
    sample: int = 0
    severity: float = 0.0
    finding: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """Pass or fail of one report under one policy or baseline; `violations` are sorted, the worst first.

    Calls that only one side makes come last among the violations: they are a gap, and no error of any size. `judged`
    counts the rows that were judged by a limit: where rows are limited, a verdict that judged none does not pass. An
    `inconclusive` verdict does not judge the models. `absorbed` are violations that do not count, since the calls
    around these rows undo the difference. `differences` are the changes of the environment since the baseline was
    written, and come before any regression. `notes` are further facts for a reader: rows that appeared, improved or
    were not judged. `source` names the policy or baseline.
    """

    passed: bool
    inconclusive: bool = False
    violations: tuple[Violation, ...] = ()
    judged: int = 0
    notes: tuple[str, ...] = ()
    source: str = ""
    absorbed: tuple[Violation, ...] = ()
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineChange:
    """The changes of a baseline by a run; the new baseline has `rows` lines.

    `loosened` says, one sentence each, what the new baseline allows but the old one did not: rows that got worse or
    vanished, a larger factor or slack. `tightened` and `appeared` name rows, `kept` counts the rows with an unchanged
    line.
    """

    rows: int
    loosened: tuple[str, ...] = ()
    tightened: tuple[str, ...] = ()
    appeared: tuple[str, ...] = ()
    kept: int = 0


SCHEMA = "qtrace-report/1"


class Outcome(str, Enum):
    """The judgement of the whole run."""

    CLEAN = "clean"
    FAULT = "fault"
    DRIFT = "drift"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The compared part of the reference, in calls; the root and modules that `only`/`skip` left out do not count.

    `reasons` counts the uncompared calls by reason: {"no_partner": 2, "no_tensor": 1}.
    """

    reference_calls: int = 0
    compared: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Return compared / reference_calls; 0 without any calls, since then nothing was compared."""
        return self.compared / self.reference_calls if self.reference_calls else 0.0

    @property
    def accounted(self) -> float:
        """Return the share of calls that were compared, or whose result was.

        The result of a module that the candidate computes fused with others, or in parts, is compared at the next
        boundary, where the last module of its group returns. A module that returns a tensor which was compared
        elsewhere, as a dropout in eval mode does, computes nothing of its own.
        """
        others = sum(self.reasons.get(r, 0) for r in ("fused", "split", "passed_on")) if self.compared else 0
        return (self.compared + others) / self.reference_calls if self.reference_calls else 0.0


@dataclass(frozen=True, slots=True)
class Unmatched:
    """The uncompared calls of one module: `side` is the side of the module, `reason` says why.

    `module` is the path in that side's own names; `calls` is 0 for a module that was never called.
    """

    side: str
    module: str
    type: str
    calls: int
    reason: str


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models: its origin, its class, its parameters' dtypes and count, its mode."""

    source: str
    type: str
    parameters: int
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]
    training: bool


# A graft that leaves less than so much of the final error has found a part of the cause.
RELIEVED = 0.9


def is_improved(before: float | None, after: float | None) -> bool:
    """Return whether a graft lowers the final error: by a tenth at least, or from no number at all to one."""
    if before is None or after is None or math.isinf(after):
        return False
    return math.isinf(before) or after < RELIEVED * before


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A named fault.

    `module` is the reference's path of the module whose code or data is at fault, `members` are its repeats in other
    layers, `count` is the number of all. `kind` is `introduces`, `miscalls` (it passes a wrong `argument` to `callee`,
    and to the other `callees`), `non_finite`, `structure` or `raises`. `graft` holds the final error before and after
    the candidate received the reference's tensors there, `source` file, line and function on each side. `strength`
    says how sure that makes it: `confirmed` (with all that are confirmed healed, the final error is at most a tenth, or
    rounding; this graft takes at least a tenth off it; and its boundary is not the whole model's), `in part` (the graft
    takes at least a tenth off) or `not confirmed`. `confirmed` is the first of these as a bool.
    """

    rank: int
    module: str
    call: int
    kind: str
    summary: str
    argument: str | None = None
    callee: str | None = None
    callees: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    count: int = 1
    confirmed: bool = False
    graft: dict[str, Any] | None = None
    evidence: tuple[str, ...] = ()
    source: dict[str, Any] | None = None
    strength: str = ""

    def __post_init__(self) -> None:
        """Say how sure the graft makes the finding, where that is not given: earlier reports do not have it."""
        if not self.strength:
            before, after = (self.graft or {}).get("before"), (self.graft or {}).get("after")
            graded = "in part" if is_improved(before, after) else "not confirmed"
            object.__setattr__(self, "strength", "confirmed" if self.confirmed else graded)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """The result of a run, and the exact contents of the JSON report. `qtrace.Report` adds methods.

    `inputs` has an entry for each leaf of each sample: {"sample", "name", "spec"}. `settings` are the options that
    affected the run (tolerance, only, skip, seed). `error` is the message where a model raised: rows then end at that
    call. `static` lists the differences between aligned modules before anything runs, where a faulty module was
    searched for.
    """

    qtrace: str
    created: str
    environment: dict[str, Any]
    reference: Side
    candidate: Side
    inputs: tuple[dict[str, Any], ...]
    outcome: Outcome
    coverage: Coverage
    rows: tuple[Row, ...]
    arguments: tuple[Argument, ...] = ()
    findings: tuple[Finding, ...] = ()
    unmatched: tuple[Unmatched, ...] = ()
    warnings: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    schema: str = SCHEMA

    @property
    def has_stored_side(self) -> bool:
        """Return whether the reference or the candidate was a stored trace, into which no tensor can be forced."""
        return bool(self.settings.get("stored"))
