"""The report of one run and the gate's verdict on it: what was compared, what was not and why, the outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qtrace.report.records.rows import Argument, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One limit that was not kept.

    `module`, `call`, `output` and `sample` name the row; `module` is None for a limit of the whole run. `column` is
    what was judged: a row's column ("peir", "sqnr_db", …), or "coverage", "outcome", "unmatched", "missing", "status".
    `observed` is None where there is no number, and `reason` says why in any case. `rule` names the line that set the
    limit ("max_peir", "overrides model.visual.**: max_peir", "baseline"). `severity` is how many times the limit is
    exceeded (inf where no number tells); `finding` the rank of the finding that explains it.
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

    Calls that only one side makes come last among the violations: they are a gap, and no error of any size.
    `judged` counts the rows that were held against a limit: where rows are limited, a verdict that judged none does
    not pass. An `inconclusive` one says nothing about the models. `absorbed` are violations that do not count, since
    the calls around these rows undo the difference. `differences` say what is not as it was when the baseline was
    written, and stand before any regression. `notes` are what a reader should know besides: rows that appeared,
    improved or were not judged. `source` names the policy or baseline.
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
    """What taking a run into a baseline changes; the new baseline has `rows` lines.

    `loosened` says, one sentence each, what the new baseline allows and the old one did not: rows that got worse or
    vanished, a larger factor or slack. `tightened` and `appeared` name rows, `kept` counts those whose line stays.
    """

    rows: int
    loosened: tuple[str, ...] = ()
    tightened: tuple[str, ...] = ()
    appeared: tuple[str, ...] = ()
    kept: int = 0


SCHEMA = "qtrace-report/1"


class Outcome(str, Enum):
    """What the whole run says."""

    CLEAN = "clean"
    FAULT = "fault"
    DRIFT = "drift"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the reference was compared, in calls; the root and what `only`/`skip` left out do not count.

    `reasons` counts the calls that were not compared by why: {"no_partner": 2, "no_tensor": 1}.
    """

    reference_calls: int = 0
    compared: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Return compared / reference_calls; 0 where there were no calls, since nothing was compared then."""
        return self.compared / self.reference_calls if self.reference_calls else 0.0

    @property
    def accounted(self) -> float:
        """Return the share of calls that were compared, or that the candidate computes in one with others or in parts.

        What such a module computes is compared at the next boundary, where the last one of its group returns.
        """
        others = sum(self.reasons.get(reason, 0) for reason in ("fused", "split")) if self.compared else 0
        return (self.compared + others) / self.reference_calls if self.reference_calls else 0.0


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Calls of one module that were compared with nothing: `side` is whose module it is, `reason` says why.

    `module` is the path in that side's own names; `calls` is 0 for a module that was never called.
    """

    side: str
    module: str
    type: str
    calls: int
    reason: str


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models: where it came from, its class, its parameters' dtypes and count, its mode."""

    source: str
    type: str
    parameters: int
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]
    training: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A named fault.

    `module` is the reference's path of the module whose code or data is at fault, `members` are repeats of it in
    other layers, `count` of them all. `kind` is `introduces`, `miscalls` (it hands `argument` wrongly to `callee`, and
    to the other `callees`), `non_finite`, `structure` or `raises`. `graft` holds the final error before and after the
    candidate was handed the reference's tensors there, `source` file, line and function on each side.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What a run found; the JSON report is this and nothing else. `qtrace.Report` adds the verbs.

    `inputs` has an entry per leaf of each sample: {"sample", "name", "spec"}. `settings` are the options that
    shaped the run (tolerance, only, skip, seed). `error` is the message where a model raised: rows then
    end at that call. `static` says what differs between aligned modules before anything runs, where somebody was
    looked for.
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
        """Return whether the reference or the candidate was a stored trace, which takes no other values."""
        return bool(self.settings.get("stored"))
