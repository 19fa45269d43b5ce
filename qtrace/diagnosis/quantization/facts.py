"""Turns the quantizers that readers find into the facts of a row: scheme, ranges, expected rounding, problems."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qtrace.diagnosis.quantization.ranges import Range, quantizer_input, range_problems, saturated_share, without_empty
from qtrace.diagnosis.static_differences import StaticNote, pattern_of
from qtrace.diagnosis.suspects import role
from qtrace.engine.model import Model
from qtrace.numerics import NoValues, describe
from qtrace.report.records import QuantFacts, Quantizer, QuantProblem, QuantProblemKind
from qtrace.toolkits import Readers, read, readers_for
from qtrace.toolkits.quantizer import Reading

_CALIBRATE = "calibrate on inputs like these before converting"
_TAKE = "take the scales from the weight again"
# The errors that attributes of another form than the toolkit's raise.
UNREADABLE = (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError, IndexError, NoValues)
_MOST_NOTES = 10


def quant_facts(
    reference: torch.nn.Module,
    candidates: Sequence[torch.nn.Module],
    aligned: frozenset[torch.nn.Module] = frozenset(),
    values: Mapping[str, Tensor] | None = None,
    *,
    readers: Readers | None = None,
) -> QuantFacts | None:
    """Return how the partners of `reference` quantize; None if nothing is known of that.

    `aligned` are all modules of the candidate that have a partner. A weight's quantizer is compared with the weight
    that it rounds: the candidate's own or, if only the rounded one is kept, the reference's. The quantizer of the
    "input" or "output" is compared with the reference's tensor of this name in `values`. `readers` are those that the
    whole model needs, if they are known. Waits for the accelerator if a scale is on one.
    """
    toolkit, quantizers = "", []
    for named, found in _read_each(candidates, aligned, readers):
        # A toolkit may keep an attribute of another form under a name known here: then the quantizer is not known.
        try:
            # Which of several inner quantizers runs depends on the path of a call: in a calibrated module, those that
            # saw no values are not in use.
            calibrated = any(not reading.saw_nothing for reading in found if reading.of != "weight")
            told = [
                _quantizer(reading, quantizer_input(reading, reference, values or {}), calibrated) for reading in found
            ]
        except UNREADABLE:
            continue
        toolkit = toolkit or named
        quantizers += told
    return QuantFacts(toolkit, tuple(quantizers)) if quantizers else None


def readings_of(
    candidates: Sequence[torch.nn.Module], aligned: frozenset[torch.nn.Module] = frozenset()
) -> list[Reading]:
    """Return the quantizers of the partners of one reference module, and of the modules that these wrap."""
    return [reading for _, found in _read_each(candidates, aligned) for reading in found]


def _read_each(
    candidates: Sequence[torch.nn.Module], aligned: frozenset[torch.nn.Module], readers: Readers | None = None
) -> Iterator[tuple[str, list[Reading]]]:
    if readers is None:
        inside = (module for candidate in candidates for module in candidate.modules())
        readers = readers_for(itertools.chain(inside, aligned))
    for candidate in _with_inner(candidates, aligned):
        try:
            yield read(candidate, aligned, readers)
        except UNREADABLE:
            continue


def with_interval(facts: QuantFacts, interval: float | None) -> QuantFacts:
    """Return the facts with the output's rounding as a ratio to the interval of the reference's output."""
    if not interval or not math.isfinite(interval):
        return facts
    told = (
        replace(q, rounding_peir=q.rounding / interval)
        if q.of == "output" and q.rounding is not None and q.rounding_peir is None
        else q
        for q in facts.quantizers
    )
    return QuantFacts(facts.toolkit, tuple(told))


def _with_inner(
    candidates: Sequence[torch.nn.Module], aligned: frozenset[torch.nn.Module]
) -> Iterator[torch.nn.Module]:
    """Yield the modules and those that they wrap: the modules inside with children and without a partner."""
    seen = set()
    waiting = list(reversed(candidates))
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield module
            inside = [child for child in module.children() if child._modules and child not in aligned]
            waiting += reversed([child for child in inside if not _is_quantizer(child)])


def _is_quantizer(module: torch.nn.Module) -> bool:
    """Return whether a module is one of its parent's quantizers: it is read with the parent."""
    has_range = hasattr(module, "scale") and hasattr(module, "zero_point")
    return (has_range or hasattr(module, "fake_quant_enabled")) and not hasattr(module, "weight")


def _quantizer(reading: Reading, values: Tensor | None, calibrated: bool) -> Quantizer:
    reading = without_empty(reading, values)
    held = Range.of(reading)
    unused = calibrated and reading.saw_nothing and reading.of != "weight"
    broken = None if unused else _uncalibrated(reading)
    rounding = ratio = share = None
    problems = [broken] if broken is not None else []
    if held is not None:
        rounding = held.rounding(reading)
    if held is not None and values is not None:
        interval = (values.max() - values.min()).item()
        ratio = rounding / interval if rounding is not None and interval > 0 else None
        share = saturated_share(values, reading, held)
        if share is not None and broken is None:
            problems += range_problems(values, reading, held, share)
    return Quantizer(
        name=reading.name,
        of=reading.of,
        dtype=reading.dtype,
        scheme=_scheme(reading),
        symmetric=reading.symmetric,
        axis=reading.axis,
        group=reading.group,
        scales=0 if reading.scale is None else reading.scale.numel(),
        scale=_span(reading.scale),
        zero_point=_span(reading.zero_point) if reading.scale is not None else None,
        range=None if held is None else held.span(),
        rounding=rounding,
        rounding_peir=ratio,
        saturated=share,
        problems=tuple(problems),
    )


def _scheme(reading: Reading) -> str:
    if reading.scale is None:
        return "dynamic"
    if reading.group is not None:
        return "per group"
    return "per channel" if reading.axis is not None or reading.scale.numel() > 1 else "per tensor"


def _span(tensor: Tensor | None) -> tuple[float, float] | None:
    found = None if tensor is None else describe(tensor)
    return (found.min, found.max) if found is not None and found.min is not None and found.max is not None else None


def _uncalibrated(reading: Reading) -> QuantProblem | None:
    said = next(_signs_of_no_calibration(reading), None)
    return (
        None
        if said is None
        else QuantProblem(QuantProblemKind.UNCALIBRATED, said, _TAKE if reading.of == "weight" else _CALIBRATE)
    )


def _signs_of_no_calibration(reading: Reading) -> Iterator[str]:
    if reading.scale is None:
        return
    scale = reading.scale.detach().to("cpu", torch.float64)
    if reading.saw_nothing:
        yield "it never saw a value"
    elif reading.observed is not None and bool((reading.observed[0] == reading.observed[1]).all()):
        # For a constant a toolkit may well choose the scale 1.
        return
    if not scale.numel():
        yield "it has no scale"
    bad = int((~torch.isfinite(scale)).sum().item())
    if bad:
        yield f"{_some(bad, scale)} not finite"
    zero = int((scale <= 0).sum().item())
    if zero:
        yield f"{_some(zero, scale)} 0 or below"
    if scale.numel() and bool((scale == 1).all()):
        yield "its scale is 1, as if it had never been set"


def _some(count: int, scale: Tensor) -> str:
    if scale.numel() == 1:
        return "its scale is"
    return f"{count} of its {scale.numel()} scales {'is' if count == 1 else 'are'}"


def facts_by_path(models: tuple[Model, Model], candidate_keys: Mapping[str, str]) -> dict[str, QuantFacts]:
    """Return the facts of each reference path whose partners quantize; reads scales and weights, runs nothing.

    `candidate_keys` maps the candidate's paths to the reference's paths that they are aligned with.
    """
    reference, candidate = models
    answering: dict[str, list[torch.nn.Module]] = {}
    for path, key in candidate_keys.items():
        answering.setdefault(key, []).append(candidate.modules[path])
    aligned = frozenset(module for modules in answering.values() for module in modules)
    readers = readers_for(candidate.root.modules())
    found = {
        key: quant_facts(reference.modules[key], modules, aligned, readers=readers)
        for key, modules in answering.items()
    }
    return {key: facts for key, facts in found.items() if facts is not None}


def problem_notes(facts: Mapping[str, QuantFacts]) -> Iterator[StaticNote]:
    """Yield the problems of quantizers, once for all layers with the same problem, those of few layers first.

    There are 10 at most.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for path, told in facts.items():
        for kind, sentence in told.sentences():
            # The figures may differ between layers; those of the first are reported.
            groups.setdefault((role(path), f"{kind.value} {sentence.split(':')[0]}"), {})[path] = sentence
    notes = sorted((_note(said) for said in groups.values()), key=lambda note: len(note.members))
    yield from notes[:_MOST_NOTES]
    if len(notes) > _MOST_NOTES:
        yield StaticNote("", f"{len(notes) - _MOST_NOTES} more groups of quantizers have something wrong", ("",))


def _note(said: Mapping[str, str]) -> StaticNote:
    return StaticNote(pattern_of(list(said)), next(iter(said.values())), tuple(said))
