"""Reads once from the candidate's modules how they quantize, whatever the toolkit, and words the problems found."""

from qtrace.diagnosis.quantization.expected_error import expected_error, expected_peak
from qtrace.diagnosis.quantization.facts import facts_by_path, problem_notes, quant_facts, readings_of, with_interval

__all__ = [
    "expected_error",
    "expected_peak",
    "facts_by_path",
    "problem_notes",
    "quant_facts",
    "readings_of",
    "with_interval",
]
