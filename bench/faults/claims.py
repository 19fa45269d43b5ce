"""What a finding may say of itself by its own numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qtrace.report.records import Finding

# A graft must take away at least a tenth of the error for the finding to claim anything of it.
ENOUGH = 0.9


def overclaims(finding: Finding) -> bool:
    """Return whether a finding's words (`confirmed`, `strength`) go beyond its numbers (`graft`)."""
    if finding.confirmed != (finding.strength == "confirmed"):
        return True
    if finding.strength == "not confirmed":
        return False
    if finding.strength not in ("confirmed", "in part"):
        return True
    if finding.graft is None:
        # What raises is seen to raise; everything else must have been tried.
        return not (finding.strength == "confirmed" and finding.kind == "raises")
    return not _improves(finding.graft)


def _improves(graft: Mapping[str, Any]) -> bool:
    before, after = graft.get("before"), graft.get("after")
    if before is None or after is None or not math.isfinite(after):
        return False
    # Written so that a `before` of NaN is no improvement.
    return bool(math.isinf(before) or after <= ENOUGH * before)
