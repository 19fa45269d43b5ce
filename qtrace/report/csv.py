"""The rows as comma-separated values, for spreadsheets and data frames: a line for each row, with all its fields."""

from __future__ import annotations

import csv as format
import io
import math
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from typing import Any

from qtrace.report.columns import execution_order
from qtrace.report.records import GateVerdict, ReportData, Row, TensorSpec
from qtrace.report.text import one_line, shown

# A spreadsheet takes a cell that begins so for a formula, even in quotes.
FORMULA = ("=", "+", "-", "@")
AS_TEXT = "'"
VIOLATIONS = "violations"

COLUMNS: dict[str, Callable[[Row], Any]] = {
    "order": lambda row: row.order,
    "module": lambda row: shown(row.module),
    "call": lambda row: row.call,
    "output": lambda row: row.output,
    "type": lambda row: row.type,
    "sample": lambda row: row.sample,
    "samples": lambda row: row.samples,
    "status": lambda row: row.status,
    "verdict": lambda row: row.verdict,
    "reference_dtype": lambda row: _dtype(row.reference),
    "reference_shape": lambda row: _shape(row.reference),
    "candidate_dtype": lambda row: _dtype(row.candidate),
    "candidate_shape": lambda row: _shape(row.candidate),
    "elements": lambda row: row.elements,
    "mean": lambda row: row.mean,
    "min": lambda row: row.min,
    "max": lambda row: row.max,
    "stddev": lambda row: row.stddev,
    "peir": lambda row: row.peir,
    "peir_related": lambda row: row.peir_related,
    "peir_in": lambda row: row.peir_in,
    "peir_local": lambda row: row.peir_local,
    "floor": lambda row: row.floor,
    "sqnr_db": lambda row: row.sqnr_db,
    "cosine": lambda row: row.cosine,
    "rel_l2": lambda row: row.rel_l2,
    "mismatch": lambda row: row.mismatch,
    "non_finite_reference": lambda row: row.non_finite[0] if row.non_finite else None,
    "non_finite_candidate": lambda row: row.non_finite[1] if row.non_finite else None,
    "non_finite_same": lambda row: row.non_finite_same,
    "relation": lambda row: row.relation,
    "relation_error": lambda row: row.relation.error if row.relation else None,
    "quantization": lambda row: row.quantization.short() if row.quantization else None,
}


def csv(report: ReportData, verdict: GateVerdict | None = None) -> str:
    """Return the rows in execution order under a line of column names, numbers with all their digits.

    A number that does not exist is an empty cell. With a verdict of the gate a last column names the rules that a row
    violates. Violations without a row (coverage, a missing row) are not in the file.
    """
    rules: dict[tuple[str | None, int, str, int], list[str]] = defaultdict(list)
    for violation in verdict.violations if verdict is not None else ():
        rules[violation.module, violation.call, violation.output, violation.sample].append(violation.rule)
    text = io.StringIO()
    writer = format.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *([VIOLATIONS] if verdict is not None else [])])
    for row in execution_order(report.rows):
        cells = [_cell(value(row)) for value in COLUMNS.values()]
        if verdict is not None:
            cells.append(_cell("; ".join(rules[row.module, row.call, row.output, row.sample])))
        writer.writerow(cells)
    return text.getvalue()


def _cell(value: Any) -> str:
    """Return one cell: text that is no formula, a number that can be read back, or an empty text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    text = one_line(str(value.value if isinstance(value, Enum) else value))
    return AS_TEXT + text if text.lstrip().startswith(FORMULA) else text


def _dtype(spec: TensorSpec | None) -> str | None:
    return None if spec is None else spec.dtype or spec.type


def _shape(spec: TensorSpec | None) -> str | None:
    return None if spec is None or spec.shape is None else f"[{','.join(map(str, spec.shape))}]"
