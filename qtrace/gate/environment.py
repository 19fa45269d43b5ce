"""What a run's numbers depend on beside the two models: versions, machine, types, seed, inputs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from qtrace.report.records import ReportData, Side

if TYPE_CHECKING:
    from qtrace.gate.baseline import Baseline

_SETTINGS = ("call", "tolerance", "noise_floor", "samples")


def fingerprint(report: ReportData) -> dict[str, str]:
    """Return the environment of a run as texts, by name, in a fixed order."""
    known = report.environment
    found: dict[str, Any] = {"qtrace": report.qtrace}
    found |= {name: known[name] for name in ("python", "machine", "threads", "seed") if name in known}
    versions = known.get("versions")
    found |= dict(sorted(versions.items())) if isinstance(versions, dict) else {}
    found |= {"reference": _side(report.reference), "candidate": _side(report.candidate)}
    found["inputs"] = _digest(report)
    found |= {name: report.settings[name] for name in _SETTINGS if name in report.settings}
    return {name: str(value) for name, value in found.items()}


def differences(report: ReportData, baseline: Baseline) -> tuple[str, ...]:
    """Return what is not the same as in the baseline's environment, one sentence each."""
    now, then = fingerprint(report), baseline.environment
    return tuple(
        f"{name} is {now.get(name, 'not there')}, and was {then.get(name, 'not there')} in the baseline"
        for name in dict.fromkeys([*then, *now])
        if now.get(name) != then.get(name)
    )


def _side(side: Side) -> str:
    return " ".join(
        [side.type, ",".join(side.dtypes), ",".join(side.devices), *(["training"] if side.training else [])]
    )


def _digest(report: ReportData) -> str:
    """Return one digest of all the inputs' names, shapes and values."""
    digest = hashlib.sha256()
    for entry in report.inputs:
        digest.update(repr([entry.get("sample"), entry.get("name"), entry.get("digest")]).encode())
    return digest.hexdigest()[:16]
