"""Where to stop for what a run has found."""

from __future__ import annotations

from collections.abc import Collection

from qtrace.debug.breakpoints import ENTER, EXIT, Place
from qtrace.patterns import ROOT
from qtrace.report.leap import first_leap
from qtrace.report.records import Finding, Outcome, ReportData


def culprit(report: ReportData, paths: Collection[str]) -> list[Place]:
    """Return the places of the first finding; where there is none, the exit of the first leap of a fault.

    For an argument that is handed on wrongly it is the entry of the callee, where both sides still stand in the code
    that makes it; else the entry and the exit of the module that is to blame. `paths` are the reference's modules.
    Nothing where nobody is to blame.
    """
    if report.findings:
        return _places(min(report.findings, key=lambda one: one.rank), paths)
    leap = first_leap(report.rows) if report.outcome is Outcome.FAULT else None
    return [] if leap is None else [Place(_known(leap.row.module, paths), EXIT, leap.row.call)]


def sample_of(report: ReportData) -> int:
    """Return the sample on which the final outputs are furthest apart."""
    return next((row.sample for row in report.rows if row.module == ""), 0)


def _places(finding: Finding, paths: Collection[str]) -> list[Place]:
    if finding.kind == "miscalls" and finding.callee is not None:
        return [Place(_known(finding.callee, paths), ENTER)]
    module = _known(finding.module, paths)
    if finding.kind == "raises":
        return [Place(module, ENTER)]
    return [Place(module, ENTER, finding.call), Place(module, EXIT, finding.call)]


def _known(path: str, paths: Collection[str]) -> str:
    """Return a path of the reference's as a glob: this one, or the nearest one around it."""
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path or ROOT
