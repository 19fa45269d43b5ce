"""One way on its models, in this process: `python -m bench.toolkits.case WAY` prints a row for each as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Container
from importlib.metadata import version
from typing import Any

import torch
import transformers

import qtrace
from bench.toolkits.check import check
from bench.toolkits.environments import OWN, pinned
from bench.toolkits.subjects import SUBJECTS, available
from bench.toolkits.ways import WAYS, Way
from qtrace.cli.alignment import aligned
from qtrace.cli.listeners import CallCounter
from qtrace.engine.samples import as_samples
from qtrace.errors import QtraceError
from qtrace.report.records import ReportData
from qtrace.sources.wrappers import apply_wrapper


def measure(way: Way, model: str) -> dict[str, Any]:
    """Return the row: calls aligned and compared, leftovers with their reasons, pairs checked, outcome, seconds."""
    build, inputs = SUBJECTS[model]
    reference, sample = build(), inputs()
    row: dict[str, Any] = {"way": way.name, "model": model, "versions": versions(way)}
    begin = time.perf_counter()
    try:
        candidate = apply_wrapper(way.wrapper, reference, as_samples(sample), way.arguments(model))
    except QtraceError as error:
        return {**row, "refused": str(error)}
    row["wrap_s"] = time.perf_counter() - begin
    counters = (CallCounter(), CallCounter())
    begin = time.perf_counter()
    try:
        report: ReportData = qtrace.trace(reference, candidate, sample, local=True, listeners=counters)
    except QtraceError as error:
        return {**row, "refused": str(error)}
    row["trace_s"] = time.perf_counter() - begin
    pairings, unmatched = aligned(reference, candidate, counters, report.unmatched)
    ran = [pair for pair in pairings if pair.candidate_calls and pair.reference_calls]
    names = {pair.reference for pair in ran} - {""}
    calls = {path: n for path, n in counters[0].calls.items() if path}
    checked = check(reference, candidate, ran, report)
    left = {one.module: one.reason for one in unmatched if one.side == "reference" and one.calls}
    return {
        **row,
        "outcome": str(report.outcome.value),
        "calls": sum(calls.values()),
        "aligned": sum(n for path, n in calls.items() if path in names),
        "compared": report.coverage.compared,
        "rules": sorted({pair.rule for pair in ran if pair.reference}),
        "left": left,
        "apart": apart(report, names),
        "checked": dataclasses.asdict(checked),
        "findings": [f"{finding.kind} {finding.module or '<root>'}" for finding in report.findings],
        "final_peir": max((r.peir for r in report.rows if r.module == "" and r.peir is not None), default=None),
        "local": local_errors(report),
    }


def versions(way: Way) -> dict[str, str]:
    """Return the versions of a way's toolkit, of what is pinned beside it, and of transformers."""
    toolkits = pinned(way.environment) if way.environment else [name for name in OWN if name == way.wrapper]
    return {package: version(package) for package in (*toolkits, "transformers")}


def apart(report: ReportData, names: Container[str]) -> dict[str, str]:
    """Return the aligned modules whose outputs all have another shape or structure, with the status that says so."""
    statuses: dict[str, set[str]] = {}
    for row in report.rows:
        if row.module in names:
            statuses.setdefault(row.module, set()).add(row.status.value)
    return {
        module: min(found) for module, found in statuses.items() if found <= {"shape_mismatch", "structure_mismatch"}
    }


def local_errors(report: ReportData) -> dict[str, float]:
    """Return the error that each module makes itself, the largest of its rows."""
    errors: dict[str, float] = {}
    for row in report.rows:
        if row.peir_local is not None and row.module:
            errors[row.module] = max(errors.get(row.module, 0.0), row.peir_local)
    return errors


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    chosen = next(way for way in WAYS if way.name == sys.argv[1])
    # Toolkits print what they do.
    out, sys.stdout = sys.stdout, sys.stderr
    for subject in chosen.models:
        if available(subject):
            print(json.dumps(measure(chosen, subject)), file=out, flush=True)
