"""Turns a confirmed suspect into a finding in plain words: how its data differs, and where its code is."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from qtrace.diagnosis.borrowed_tensors import borrowed
from qtrace.diagnosis.caches import cache_faults, takes_cache
from qtrace.diagnosis.confirmation import Graft
from qtrace.diagnosis.operators.code import Lines, called_elsewhere, forward_of, line_of, source_of
from qtrace.diagnosis.projections import faulty_projection, projection_evidence
from qtrace.diagnosis.quantization.observation import QuantizerEvidence
from qtrace.diagnosis.runner import Runner
from qtrace.diagnosis.static_differences import attribute_differences, config_differences, static_differences
from qtrace.diagnosis.suspects import Suspect
from qtrace.diagnosis.tensor_differences import ROUNDED, held_tensor, holds_the_same, tensor_differences
from qtrace.diagnosis.trial import CallRecord, Value
from qtrace.report.records import Finding, Status, TensorSpec

_MOST_REORDERED = 6
# The tensors that tell whose place a module's data has.
_TELLING = ("weight", "running_mean")
# Sentences that tell that data differs, but not how.
_VAGUE = ("differs everywhere", "] against [", "differs by")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")
_MOST_BORROWED = 6
# Of a class with its settings so many characters are shown.
_LONGEST = 120
# So many findings are reported in full.
_MOST_PINPOINTED = 3


def finding_of(
    suspect: Suspect,
    rank: int,
    static: Sequence[str],
    *,
    evidence: Sequence[str],
    source: dict[str, Any] | None,
    confirmed: bool = False,
    graft: dict[str, Any] | None = None,
    cached: str | None = None,
) -> Finding:
    """Return the finding for a suspect; `static` says in words how its data differs, `cached` how its cache does."""
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
        summary=summary(suspect, static, cached),
        evidence=tuple(evidence),
        source=source,
    )


def summary(suspect: Suspect, static: Sequence[str], cached: str | None = None) -> str:
    """Return one sentence that says what is wrong at the suspect; `cached` what its cache returns otherwise."""
    if cached is not None:
        return cached
    if suspect.kind == "miscalls":
        callees = suspect.callees
        more = f" (and {len(callees) - 1} more)" if len(callees) > 1 else ""
        value = suspect.value
        shown = f": {_contrast(value)}" if value is not None else ""
        return (
            f"receives the same arguments on both sides, but calls {callees[0]}{more} "
            f"with another {suspect.argument}{shown}{_padding(value)}"
        )
    if suspect.instead:
        return (
            f"has no partner: the candidate calls {', '.join(suspect.instead[:3])} in its place, "
            f"and passes {suspect.callees[0]} another {suspect.argument}{_padding(suspect.value)}"
        )
    if suspect.kind == "structure":
        return f"makes other calls: {', '.join(suspect.callees[:3])} ran on one side only{_lone(suspect)}"
    if suspect.kind == "non_finite":
        return "makes non-finite values out of the same arguments"
    why = f": {'; '.join(static[:2])}" if static else ""
    what = "its own code computes" if suspect.has_children else "computes"
    return f"{what} something else from the same arguments{why}{_padding(suspect.value)}"


def _lone(suspect: Suspect) -> str:
    """Return which side made the calls that stand without a partner; nothing where that is not known."""
    sides = {call.side for call in suspect.call.children if call.module in suspect.callees and call.side is not None}
    if sides == {"reference"}:
        return ": the candidate does not call it" if len(suspect.callees) == 1 else ": the candidate does not call them"
    return ": the reference does not" if sides == {"candidate"} else ""


def _padding(value: Value | None) -> str:
    """Return the words for a value that differs only at positions that the mask hides; else nothing."""
    relation = value.relation if value is not None else None
    return f"; {relation}" if relation is not None and relation.kind == "masked_positions" else ""


def evidence_for(suspect: Suspect, static: Sequence[str]) -> Iterator[str]:
    """Yield what supports a finding, one sentence each."""
    reordered = _in_another_order(suspect.call)
    if suspect.has_children and reordered:
        yield f"the candidate calls its modules in another order: {', '.join(reordered)}"
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
                if value.relation.kind not in ("where", "masked_positions")
                else str(value.relation)
            )
    yield from static


def _in_another_order(container: CallRecord) -> list[str]:
    """Return the modules that a container of the candidate calls in another order, in that order; a few at most."""
    both = [call for call in container.children if call.candidate_entry is not None]
    theirs = sorted(both, key=lambda call: call.candidate_entry or 0)
    mine = sorted(both, key=lambda call: call.entry)
    apart = [place for place, (one, other) in enumerate(zip(mine, theirs, strict=True)) if one is not other]
    reordered = theirs[apart[0] : apart[-1] + 1] if apart else []
    if all(value.agrees for call in reordered for value in call.arguments):
        # Modules that do not depend on each other, such as q, k and v, may run in any order.
        return []
    named = [call.module for call in reordered]
    return named[:_MOST_REORDERED] + (["…"] if len(named) > _MOST_REORDERED else [])


def _innermost(module: torch.nn.Module) -> torch.nn.Module:
    """Return what a wrapper around one module, or a wrapper around such a wrapper, holds."""
    while len(inner := list(module.children())) == 1:
        module = inner[0]
    return module


def _described(module: torch.nn.Module) -> str:
    """Return a module's class with its settings, as torch shows it."""
    return " ".join(f"{type(module).__name__}({module.extra_repr()})".split())[:_LONGEST]


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


Differences = Callable[[torch.nn.Module, Sequence[torch.nn.Module]], Iterable[str]]


class Naming:
    """Writes findings; `was_called` says whether a reference module ran, on either side."""

    def __init__(self, runner: Runner, was_called: Callable[[str], bool], quantized: QuantizerEvidence) -> None:
        self._runner = runner
        self._was_called = was_called
        self._static: dict[str, tuple[str, ...]] = {}
        self._quantized = quantized
        self._caches: dict[str, str] | None = None

    def finding(self, rank: int, graft: Graft) -> Finding:
        """Return the finding for a suspect."""
        suspect, static = self._placed(graft.suspect)
        parting = self._parting(rank, suspect, graft)
        sites = suspect.callee.sites if suspect.callee is not None else (None, None)
        quantized = self._quantized.evidence(suspect, looks=rank <= _MOST_PINPOINTED)
        projected = projection_evidence(self._runner, suspect) if rank <= _MOST_PINPOINTED else ()
        return finding_of(
            suspect,
            rank,
            static,
            confirmed=graft.is_cause,
            graft={"before": graft.before, "after": graft.after},
            cached=self._cached(suspect),
            evidence=(
                *called_elsewhere(sites, parting),
                *evidence_for(suspect, static),
                *(() if static else self._unlike(suspect)),
                *(self._borrowed(suspect) if rank <= _MOST_PINPOINTED else ()),
                *projected,
                *quantized,
            ),
            source=self._source(suspect, parting),
        )

    def static(self, module: str) -> tuple[str, ...]:
        """Return in words how a reference module differs from its partners in the candidate."""
        # Each step from suspect to finding needs it, and it reads the weights: so it is cached.
        if module not in self._static:
            said = (*self.elsewhere(module), *self._said(module, static_differences))
            said = tuple(sentence for sentence in said if not sentence.endswith(ROUNDED))
            weighed = self._quantized.weights.sentences(module)
            if weighed is not None:
                # Values under their rounding tell more than codes, and the rounding of a weight is no reason.
                said = tuple(sentence for sentence in said if not sentence.startswith("weight "))
                is_told = any(sentence.startswith("bias ") for sentence in said)
                said = (*(s for s in weighed if not (is_told and s.startswith("adds "))), *said)
            self._static[module] = said
        return self._static[module]

    def way(self, suspect: Suspect) -> Hashable:
        """Return in which way a suspect's data is wrong: equal for modules of a class that differ in the same way.

        None where its data does not differ, or in no way that words can tell.
        """
        module, modules = suspect.module, self._runner.models[0].modules
        is_own = suspect.kind == "introduces" and module in modules
        said = self.static(module) or tuple(self._quantized.watch.sentences(module)) if is_own else ()
        if not said or any(words in said[0] for words in _VAGUE):
            return None
        return type(modules[module]), _NUMBER.sub("#", said[0].split(" (")[0])

    def faulty_weights(self) -> list[str]:
        """Return the modules with a weight that is no rounding of the reference's, where that was looked at."""
        return self._quantized.weights.faulty()

    def elsewhere(self, module: str) -> Iterator[str]:
        """Yield where the reference holds what the candidate's partner of a module holds, if elsewhere.

        A parameter says it for the others of its module; buffers, as a norm's statistics, are asked where all
        parameters are the module's own.
        """
        modules = self._runner.models[0].modules
        mine, partners = modules.get(module), self._runner.partners(module)[-1:]
        if mine is None or not partners:
            return
        for name in _TELLING:
            own, theirs = (held_tensor(side, name) for side in (mine, partners[0]))
            if own is None or theirs is None or holds_the_same(own, theirs):
                continue
            for path, other in modules.items():
                held = held_tensor(other, name)
                if held is not None and path != module and holds_the_same(held, theirs):
                    yield f"{name} holds what {path} holds in the reference: layers swapped or in another order"
                    return

    def _cached(self, suspect: Suspect) -> str | None:
        """Return what the cache that a module asks returns otherwise, if it is the cache that is wrong."""
        module = self._runner.models[0].modules.get(suspect.module)
        if not suspect.has_children or module is None or not takes_cache(module):
            return None
        if self._caches is None:
            self._caches = cache_faults(self._runner)
        return self._caches.get(suspect.module)

    def _borrowed(self, suspect: Suspect) -> Iterator[str]:
        """Yield which tensors of modules inside the container's own code reads, where some of them differ."""
        if not suspect.has_children or not any(
            self._said(path, tensor_differences) for path in self._children(suspect.module)
        ):
            return
        names = borrowed(self._runner, suspect.module)
        if names:
            yield f"its own code reads {', '.join(names[:_MOST_BORROWED])} as they are stored"

    def attributes(self, module: str) -> tuple[str, ...]:
        """Return the part of `static` that concerns plain attributes."""
        return self._said(module, attribute_differences)

    def _unlike(self, suspect: Suspect) -> Iterator[str]:
        """Yield what else may be the reason: entries of the configuration, or the class of a leaf."""
        yield from self._said(suspect.module, config_differences)
        mine, theirs = self._runner.models[0].modules.get(suspect.module), self._runner.partners(suspect.module)[-1:]
        if suspect.kind != "introduces" or suspect.has_children or mine is None or not theirs:
            return
        names = type(mine).__name__, type(theirs[0]).__name__
        if names[0] == names[1] or any(True for _ in mine.children()):
            return
        is_wrapped = names[0].lower() in names[1].lower() and any(True for _ in theirs[0].children())
        if not is_wrapped:
            inner = _described(_innermost(theirs[0]))
            yield f"computed by {_described(mine)} in the reference, by {inner} in the candidate"

    def _said(self, module: str, differences: Differences) -> tuple[str, ...]:
        mine, theirs = self._runner.models[0].modules.get(module), self._runner.partners(module)
        if mine is not None and not any(True for _ in mine.children()):
            # All that a wrapper holds stands for a module without children.
            theirs = list(dict.fromkeys(inner for partner in theirs for inner in partner.modules()))
        return tuple(differences(mine, theirs)) if mine is not None and theirs else ()

    def _placed(self, suspect: Suspect) -> tuple[Suspect, tuple[str, ...]]:
        """Return the suspect, moved to where its data differs if that explains the error, and how the data differs.

        Correct code computes another result from other parameters: its own, or those of a module inside of which it
        uses only the weights.
        """
        static = self.static(suspect.module)
        if suspect.kind not in ("introduces", "miscalls"):
            return suspect, static
        for child in self._uncalled(suspect.module):
            inside = self.static(child)
            if inside and self._runner.relieves(child):
                placed = replace(suspect, kind="introduces", module=child, argument=None, callees=[], members=[])
                return replace(placed, callee=None, has_children=False), inside
        if suspect.kind == "introduces" and suspect.has_children and not static:
            for child in self._children(suspect.module):
                inside = self.static(child)
                if inside and self._runner.is_healed(self._runner.final_with_parameters(child)):
                    placed = replace(suspect, module=child, callees=[], members=[], callee=None, has_children=False)
                    return placed, inside
        projection = faulty_projection(self._runner, suspect)
        if projection is not None:
            path, said = projection
            placed = replace(suspect, kind="introduces", module=path, argument=None, callees=[], members=[])
            return replace(placed, has_children=False), said
        value = suspect.value
        same_form = value is not None and value.status is Status.COMPARED and value.reference == value.candidate
        if static and suspect.kind == "miscalls" and (same_form or self._said(suspect.module, tensor_differences)):
            return replace(suspect, kind="introduces", argument=None, callees=[]), static
        return suspect, static

    def _children(self, module: str) -> list[str]:
        modules = self._runner.models[0].modules
        return [path for path in modules if path.rpartition(".")[0] == module and path != module]

    def _uncalled(self, module: str) -> list[str]:
        return [path for path in self._children(module) if not self._was_called(path)]

    def _parting(self, rank: int, suspect: Suspect, graft: Graft) -> Lines:
        """Return the lines at which a module's own code goes wrong, for the sides on which they are known.

        They are searched for only if healing the module heals everything: beside other errors the two sides do not
        part at one place.
        """
        runner = self._runner
        is_own = suspect.kind in ("miscalls", "structure") or (
            suspect.kind == "introduces" and (suspect.has_children or self._has_code(suspect.module))
        )
        if not is_own or rank > _MOST_PINPOINTED or runner.is_coarse or not runner.is_healed(graft.after):
            return None, None
        reference, candidate = runner.parting(suspect.module, suspect.call.call) or (None, None)
        return line_of(reference), line_of(candidate)

    def _has_code(self, module: str) -> bool:
        """Return whether a module's forward is not torch's, and its data is no reason for its error."""
        mine = self._runner.models[0].modules.get(module)
        sides = [mine, *self._runner.partners(module)[:1]]
        own = [side for side in sides if side is not None and forward_of(side) is not None]
        return bool(own) and not self.static(module)

    def _source(self, suspect: Suspect, parting: Lines) -> dict[str, Any] | None:
        """Return the line on each side at which it parts from the other, if that is known.

        Else return the line of the wrong call, of the last call before a container errs, or of its forward.
        """
        reference, candidate = self._around(suspect)
        return source_of(parting[0] or reference, parting[1] or candidate)

    def _around(self, suspect: Suspect) -> Lines:
        """Return the lines of the call that shows the suspect; without such a call, of its forward."""
        call = suspect.callee
        if call is None and suspect.has_children:
            call = next((child for child in reversed(suspect.call.children) if child.side is None), None)
        if call is not None and call.sites != (None, None):
            return call.sites
        mine = self._runner.models[0].modules.get(suspect.module)
        theirs = next(iter(self._runner.partners(suspect.module)), self._runner.models[1].root)
        return None if mine is None else forward_of(mine), forward_of(theirs)
