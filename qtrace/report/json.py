"""The report as JSON, with the gate's verdict under the key `gate`."""

from __future__ import annotations

import json as format
import math
from typing import Any

from qtrace.report.records import GateVerdict, ReportData, dumps, to_plain
from qtrace.report.records.codec import from_plain

GATE = "gate"
SEVERITY = "severity"


def json(report: ReportData, verdict: GateVerdict | None = None) -> str:
    """Return the report as JSON text; an infinite severity is null there."""
    if verdict is None:
        return dumps(report)
    plain = {**to_plain(report), GATE: to_plain(verdict)}
    return format.dumps(plain, indent=1, allow_nan=False) + "\n"


def verdict_in(plain: Any, where: str) -> GateVerdict | None:
    """Return the verdict in a report's JSON data; None where the gate did not judge.

    Raises `SourceError`, naming `where` and the place, where the data are damaged.
    """
    gate = plain.get(GATE) if isinstance(plain, dict) else None
    return None if gate is None else from_plain(GateVerdict, _with_severities(gate), f"{where}: {GATE}")


def _with_severities(plain: Any) -> Any:
    """Return JSON data with infinity, which JSON lacks, in place of a null severity."""
    if isinstance(plain, dict):
        return {
            key: math.inf if key == SEVERITY and value is None else _with_severities(value)
            for key, value in plain.items()
        }
    return list(map(_with_severities, plain)) if isinstance(plain, list) else plain
