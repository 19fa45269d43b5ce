"""What limits say of a report, before it becomes a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from qtrace.report.records import Violation


@dataclass
class Judged:
    """Who does not keep to limits, whose difference is absorbed, how many rows were held.

    `rows` counts the rows that a limit was held against, `inconclusive` says that too little was compared.
    """

    violations: list[Violation] = field(default_factory=list)
    absorbed: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    inconclusive: bool = False


def of_run(column: str, rule: str, reason: str, finding: int | None = None) -> Violation:
    """Return a violation of the whole run that no number tells."""
    return Violation(module=None, column=column, rule=rule, reason=reason, severity=math.inf, finding=finding)
