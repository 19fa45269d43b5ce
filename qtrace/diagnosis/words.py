"""Findings in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qtrace.diagnosis.isolate import Suspect
from qtrace.diagnosis.trial import Value
from qtrace.report.records import Finding, Status, TensorSpec


def finding_of(
    suspect: Suspect,
    rank: int,
    static: Sequence[str],
    *,
    evidence: Sequence[str],
    source: dict[str, Any] | None,
    confirmed: bool = False,
    graft: dict[str, Any] | None = None,
) -> Finding:
    """Return the finding for a suspect; `static` is what differs in its data, in words."""
    return Finding(
        rank=rank,
        module=suspect.module,
        call=suspect.call.call,
        kind=suspect.kind,
        argument=suspect.argument,
        callee=suspect.callees[0] if suspect.callees else None,
        callees=tuple(suspect.callees),
        members=tuple(suspect.members),
        count=len(suspect.modules),
        confirmed=confirmed,
        graft=graft,
        summary=summary(suspect, static),
        evidence=tuple(evidence),
        source=source,
    )


def summary(suspect: Suspect, static: Sequence[str]) -> str:
    """Return one sentence: what is wrong there."""
    if suspect.kind == "miscalls":
        callees = suspect.callees
        more = f" (and {len(callees) - 1} more)" if len(callees) > 1 else ""
        value = suspect.value
        shown = f": {_contrast(value)}" if value is not None else ""
        return (
            f"receives the same arguments on both sides, but calls {callees[0]}{more} "
            f"with another {suspect.argument}{shown}"
        )
    if suspect.kind == "structure":
        return f"makes other calls: {', '.join(suspect.callees[:3])} ran on one side only"
    if suspect.kind == "non_finite":
        return "makes non-finite values out of the same arguments"
    why = f": {'; '.join(static[:2])}" if static else ""
    what = "its own code computes" if suspect.has_children else "computes"
    return f"{what} something else from the same arguments{why}"


def evidence_for(suspect: Suspect, static: Sequence[str]) -> Iterator[str]:
    """Yield what supports a finding, one sentence each."""
    value = suspect.value
    if value is not None and value.error is not None:
        callee = suspect.callee
        of = f" of {callee.module}" if callee is not None else ""
        what = f"argument {value.name}{of}" if callee is not None else f"output {value.name}".strip()
        if value.status is Status.NON_FINITE:
            yield f"{what}: NaN or Inf where the reference has none, on clean arguments"
        else:
            yield f"{what}: PEIR {value.error:.2e} on clean arguments"
        if callee is not None and callee.call:
            yield f"it is call {callee.call} of {callee.module}, counted from 0"
        if value.relation is not None:
            yield (
                f"there the candidate is related by {value.relation}"
                if value.relation.kind != "where"
                else str(value.relation)
            )
    yield from static


def _contrast(value: Value) -> str:
    mine, theirs = _spec(value.reference), _spec(value.candidate)
    if mine != theirs or value.error is None:
        return f"{mine} against {theirs}"
    return f"{mine} on both sides, PEIR {value.error:.2e}"


def _spec(spec: TensorSpec | None) -> str:
    if spec is None:
        return "not passed"
    text = str(spec)
    if spec.min is not None and spec.min == spec.max:
        return f"{text}, all {spec.min:g}"
    return text
