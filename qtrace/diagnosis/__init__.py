"""Finds the fault behind a difference: passes with forced boundaries, then grafts, then findings in words."""
