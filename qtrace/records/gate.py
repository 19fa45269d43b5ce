"""What a gate says of a report: whether it passes, and every limit that was not kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One limit that was not kept.

    `module`, `call`, `output` and `sample` name the row; `module` is None for a limit of the whole run. `column` is
    what was judged: a row's column ("peir", "sqnr_db", …), or "coverage", "outcome", "unmatched", "missing".
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

    `judged` counts the rows that were held against a limit: a verdict that judged none does not pass. An
    `inconclusive` one says nothing about the models. `notes` are what a reader should know besides: rows that
    appeared, improved or were not judged. `source` names the policy or baseline.
    """

    passed: bool
    inconclusive: bool = False
    violations: tuple[Violation, ...] = ()
    judged: int = 0
    notes: tuple[str, ...] = ()
    source: str = ""
