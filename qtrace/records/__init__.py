"""Value types: what was compared and what it means. Free of torch; imports nothing but the standard library."""

from qtrace.records.calls import CallTrace, Pairing, ValueTrace
from qtrace.records.codec import dumps, loads, to_plain
from qtrace.records.gate import GateVerdict, Violation
from qtrace.records.quantization import QuantFacts, Quantizer, QuantProblem, QuantProblemKind
from qtrace.records.report import SCHEMA, Coverage, Finding, Outcome, ReportData, Side, Unmatched
from qtrace.records.rows import AGREEING, Argument, Relation, Row, Statistics, Status, TensorSpec, Verdict

__all__ = [
    "AGREEING",
    "SCHEMA",
    "Argument",
    "CallTrace",
    "Coverage",
    "Finding",
    "GateVerdict",
    "Outcome",
    "Pairing",
    "QuantFacts",
    "QuantProblem",
    "QuantProblemKind",
    "Quantizer",
    "Relation",
    "ReportData",
    "Row",
    "Side",
    "Statistics",
    "Status",
    "TensorSpec",
    "Unmatched",
    "ValueTrace",
    "Verdict",
    "Violation",
    "dumps",
    "loads",
    "to_plain",
]
