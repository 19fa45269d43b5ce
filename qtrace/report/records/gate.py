"""What a gate says of a report: whether it passes, and every limit that was not kept."""

from __future__ import annotations

from dataclasses import dataclass


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
