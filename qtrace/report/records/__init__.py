"""Value types: what was compared and what it means. Free of torch; imports nothing but the standard library."""

from qtrace.report.records.calls import CallTrace, Pairing, ValueTrace
from qtrace.report.records.codec import dumps, loads, to_plain
from qtrace.report.records.gate import GateVerdict, Violation
from qtrace.report.records.quantizers import QuantFacts, Quantizer, QuantProblem, QuantProblemKind
from qtrace.report.records.report import SCHEMA, Coverage, Finding, Outcome, ReportData, Side, Unmatched
from qtrace.report.records.rows import AGREEING, Argument, Relation, Row, Statistics, Status, TensorSpec, Verdict

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
