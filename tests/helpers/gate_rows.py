"""Rows and reports made by hand, for what the gate says of them."""

from __future__ import annotations

from typing import Any

from qtrace.report.records import (
    Coverage,
    Finding,
    Outcome,
    ReportData,
    Row,
    Side,
    Status,
    TensorSpec,
    Unmatched,
    Verdict,
)

FLOAT = TensorSpec(shape=(2, 3), dtype="float32")
INTEGER = TensorSpec(shape=(2, 3), dtype="int64")
# A row that differs by little in every column, and one of which nothing could be measured.
NUMBERS: dict[str, Any] = {
    "mean": 1e-3,
    "min": 0.0,
    "max": 2e-3,
    "stddev": 5e-4,
    "peir": 1e-3,
    "sqnr_db": 60.0,
    "cosine": 0.999999,
    "rel_l2": 1e-3,
    "peir_in": 1e-4,
    "peir_local": 1e-3,
    "floor": 1e-6,
}
NUMBERLESS: dict[str, Any] = dict.fromkeys(NUMBERS)


def row(module: str = "layer", **fields: Any) -> Row:
    """Return a row that differs by little, with `fields` changed."""
    usual: dict[str, Any] = {
        "call": 0,
        "output": "",
        "type": "Linear",
        "order": 0,
        "status": Status.COMPARED,
        "verdict": Verdict.INHERITED,
        "reference": FLOAT,
        "candidate": FLOAT,
    }
    return Row(**{**usual, **NUMBERS, "module": module, **fields})


def equal_row(module: str = "layer", **fields: Any) -> Row:
    """Return a row of two equal tensors, whose SQNR is infinite and hence no number."""
    zeros = dict.fromkeys(("mean", "max", "stddev", "peir", "rel_l2", "peir_in", "peir_local"), 0.0)
    return row(module, **{**zeros, "sqnr_db": None, "cosine": 1.0, "verdict": Verdict.EQUAL, **fields})


def alone_row(module: str, status: Status = Status.REFERENCE_ONLY, **fields: Any) -> Row:
    """Return a row that only one side has."""
    sides = {"candidate": None} if status is Status.REFERENCE_ONLY else {"reference": None}
    return row(module, **{**NUMBERLESS, **sides, "status": status, "verdict": Verdict.UNMATCHED, **fields})


def report(*rows: Row, outcome: Outcome = Outcome.DRIFT, **fields: Any) -> ReportData:
    """Return a report of these rows, in this order."""
    side = Side("models.py:net", "Net", 10, ("float32",), ("cpu",), False)
    usual: dict[str, Any] = {
        "qtrace": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "environment": {"threads": 1, "seed": 0, "versions": {"torch": "2.6.0"}},
        "reference": side,
        "candidate": side,
        "inputs": ({"sample": 0, "name": "x", "spec": {}, "digest": "12ab"},),
        "coverage": Coverage(len(rows), len(rows)),
        "settings": {"tolerance": "auto"},
    }
    return ReportData(outcome=outcome, rows=rows, **{**usual, **fields})


def finding(module: str, rank: int = 1, **fields: Any) -> Finding:
    return Finding(**{"rank": rank, "module": module, "call": 0, "kind": "introduces", "summary": "wrong", **fields})


def unmatched(module: str, reason: str = "no_partner", side: str = "reference") -> Unmatched:
    return Unmatched(side, module, "Linear", 1, reason)
