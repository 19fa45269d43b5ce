"""Compares one call of a module on both sides, operator by operator, and finds where the two part."""

from qtrace.diagnosis.operators.view import compare_operators, floors_of

__all__ = ["compare_operators", "floors_of"]
