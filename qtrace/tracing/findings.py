"""From a suspect of stored traces to a finding: what differs in its data, and where its code stood."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from qtrace.diagnosis.differences import attribute_differences, tensor_differences
from qtrace.diagnosis.isolate import Suspect
from qtrace.diagnosis.operators.code_investigation import Line, forward_of, source_of
from qtrace.diagnosis.words import evidence_for, finding_of
from qtrace.engine.model import Model
from qtrace.engine.plan import Plan
from qtrace.report.records import Finding, Status
from qtrace.traces.describe import parameter
from qtrace.traces.manifest import StoredParameter
from qtrace.traces.skeleton import Skeleton


def finding(rank: int, suspect: Suspect, models: tuple[Model, Model], plan: Plan) -> Finding:
    """Return the finding for a suspect that nothing but accumulated evidence speaks against."""
    mine = models[0].modules.get(suspect.module)
    partners = [models[1].modules[path] for path, key in plan.candidate_keys.items() if key == suspect.module]
    is_own = mine is not None and suspect.kind in ("introduces", "miscalls")
    static = tuple(differences(mine, partners)) if mine is not None and is_own else ()
    if static and suspect.kind == "miscalls" and _is_of_one_form(suspect):
        # Code that is right computes something else out of other data of its own.
        suspect = dataclasses.replace(suspect, kind="introduces", argument=None, callees=[])
    call = suspect.callee
    sites = call.sites if call is not None else (None, None)
    if sites == (None, None):
        sites = (_forward(mine), _forward(partners[0] if partners else models[1].root))
    return finding_of(
        suspect,
        rank,
        static,
        evidence=(*evidence_for(suspect, static), *_others(suspect)),
        source=source_of(*sites),
    )


def differences(reference: torch.nn.Module, candidates: list[torch.nn.Module]) -> Iterator[str]:
    """Yield what differs between a module and its partners, in words; of stored weights only that they do."""
    yield from attribute_differences(reference, candidates)
    if not any(isinstance(module, Skeleton) for module in (reference, *candidates)):
        yield from tensor_differences(reference, candidates)
        return
    for kind in ("parameters", "buffers"):
        mine = _held(reference, kind)
        for name, one in mine.items():
            others = [held[name] for held in (_held(other, kind) for other in candidates) if held.get(name) is not None]
            theirs = others[0] if others else None
            if one is None or theirs is None or one == theirs:
                continue
            if (one.shape, one.dtype) != (theirs.shape, theirs.dtype):
                yield f"{name} {one.dtype} {list(one.shape or ())} against {theirs.dtype} {list(theirs.shape or ())}"
            elif one.digest is not None and theirs.digest is not None:
                yield f"{name} differs"


def _is_of_one_form(suspect: Suspect) -> bool:
    value = suspect.value
    return value is not None and value.status is Status.COMPARED and value.reference == value.candidate


def _others(suspect: Suspect) -> Iterator[str]:
    """Yield the further arguments of a call that are wrong: which of them does the harm would have to be tried."""
    if suspect.callee is not None and suspect.kind == "miscalls":
        wrong = [v.name for v in suspect.callee.arguments if not v.agrees and v.status is not Status.CANDIDATE_ONLY]
        others = [name for name in wrong if name.split(".")[0] != suspect.argument]
        if others:
            yield f"{', '.join(others)} of {suspect.callee.module} differs as well; which does the harm was not tried"


def _held(module: torch.nn.Module, kind: str) -> dict[str, StoredParameter | None]:
    if isinstance(module, Skeleton):
        return {} if module.stored is None else dict(getattr(module.stored, kind))
    tensors: dict[str, torch.Tensor | None] = getattr(module, f"_{kind}")
    return {name: None if tensor is None else parameter(tensor) for name, tensor in tensors.items()}


def _forward(module: torch.nn.Module | None) -> Line | None:
    if isinstance(module, Skeleton):
        return None if module.stored is None else module.stored.forward
    return None if module is None else forward_of(module)
