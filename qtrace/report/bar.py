"""An error as a bar of text, so that a table's large ones stand out without colour."""

from __future__ import annotations

import math

FULL = "█"
DECADES = 8
LEGEND = f"one {FULL} a factor of 10, from 1e-{DECADES}"


def bar(error: float | None) -> str:
    """Return a bar on a logarithmic scale: a block for each power of ten from 1e-8 that `error` reaches.

    >>> len(bar(3e-8)), len(bar(1e-3)), len(bar(0.5)), len(bar(40.0)), bar(0.0), bar(None)
    (1, 6, 8, 8, '', '')
    """
    if not error or math.isnan(error):
        return ""
    reached = DECADES if math.isinf(error) else math.floor(math.log10(error)) + DECADES + 1
    return FULL * min(max(reached, 0), DECADES)
