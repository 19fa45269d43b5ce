"""The results of the bench as rows: totals per kind of fault, and one row per case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.faults.heuristics import HEURISTICS
from bench.faults.score import TOP, Result

ALL = "all"


def named_first(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row per kind of fault: how often qtrace, and each heuristic, named a right module first."""
    return [
        {
            "fault": kind,
            "cases": len(group),
            "qtrace": _share(result.first for result in group),
            **{name: _share(result.heuristics.get(name, False) for result in group) for name in HEURISTICS},
        }
        for kind, group in _groups([result for result in results if result.answers])
    ]


def with_fault(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row per kind of fault: "right/judged" for all that is judged, `other` counts findings at no fault."""
    return [
        {
            "fault": kind,
            "first": _share(result.first for result in group),
            f"in {TOP}": _share(result.top for result in group),
            "all": _share(result.found_all for result in group),
            "kind": _share(result.kind for result in group),
            "arg": _share(result.argument for result in group),
            "reason": _share(result.reason for result in group),
            "line": _share(result.line for result in group),
            "outcome": _share(result.outcome_right for result in group),
            "other": sum(result.spurious for result in group),
            "s": _seconds(group),
        }
        for kind, group in _groups([result for result in results if result.answers])
    ]


def without_culprit(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row per kind of pair without a culprit: a false alarm is a case with any finding."""
    return [
        {
            "pair": kind,
            "right": _share(result.right for result in group),
            "outcome": _share(result.outcome_right for result in group),
            "false alarms": sum(bool(result.named) for result in group),
            "s": _seconds(group),
        }
        for kind, group in _groups([result for result in results if not result.answers])
    ]


def per_case(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row per case: whether it is right, its answer and what was named."""
    return [
        {
            "case": result.id,
            "right": "yes" if result.right else "NO",
            "answer": " or ".join(path or "<root>" for path in result.answers),
            "named": ", ".join(path or "<root>" for path in result.named[:TOP]) or result.error or "",
            "outcome": result.outcome,
            "s": round(result.seconds, 2),
        }
        for result in results
    ]


def _groups(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Return the results by kind of fault, and after several kinds all of them."""
    kinds = dict.fromkeys(result.fault for result in results)
    groups = [(kind, [result for result in results if result.fault == kind]) for kind in kinds]
    return [*groups, (ALL, list(results))] if len(groups) > 1 else groups


def _share(judged: Iterable[bool | None]) -> str:
    known = [one for one in judged if one is not None]
    return f"{sum(known)}/{len(known)}" if known else ""


def _seconds(group: Sequence[Result]) -> float:
    return round(sum(result.seconds for result in group) / len(group), 2)
