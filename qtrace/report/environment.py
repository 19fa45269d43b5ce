"""On what a run was made: versions, machine, seed, as lines."""

from __future__ import annotations

from qtrace.report.records import ReportData


def environment(report: ReportData) -> list[str]:
    """Return a line for each entry of the report's environment; one that holds several is one line as well."""
    lines = []
    for name, value in report.environment.items():
        held = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name}: {held}")
    return lines
