"""The facts of a whole pair of models: by reference path, and in words what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from qtrace.diagnosis.isolate import role
from qtrace.diagnosis.quantization.facts import quant_facts
from qtrace.diagnosis.static_report import StaticNote, pattern_of
from qtrace.engine.model import Model
from qtrace.report.records import QuantFacts

_MOST_NOTES = 10


def facts_by_path(models: tuple[Model, Model], candidate_keys: Mapping[str, str]) -> dict[str, QuantFacts]:
    """Return the facts of each reference path whose partners quantize; reads scales and weights, runs nothing.

    `candidate_keys` maps the candidate's paths to the reference's that they answer to.
    """
    reference, candidate = models
    answering: dict[str, list[torch.nn.Module]] = {}
    for path, key in candidate_keys.items():
        answering.setdefault(key, []).append(candidate.modules[path])
    aligned = frozenset(module for modules in answering.values() for module in modules)
    found = {key: quant_facts(reference.modules[key], modules, aligned) for key, modules in answering.items()}
    return {key: facts for key, facts in found.items() if facts is not None}


def problem_notes(facts: Mapping[str, QuantFacts]) -> Iterator[StaticNote]:
    """Yield what is wrong with quantizers, said once for all layers that say the same; what few say comes first.

    There are 10 at most.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for path, told in facts.items():
        for kind, sentence in told.sentences():
            # The figures may be others in each layer; those of the first are told.
            groups.setdefault((role(path), f"{kind.value} {sentence.split(':')[0]}"), {})[path] = sentence
    notes = sorted((_note(said) for said in groups.values()), key=lambda note: len(note.members))
    yield from notes[:_MOST_NOTES]
    if len(notes) > _MOST_NOTES:
        yield StaticNote("", f"{len(notes) - _MOST_NOTES} more groups of quantizers have something wrong", ("",))


def _note(said: Mapping[str, str]) -> StaticNote:
    return StaticNote(pattern_of(list(said)), next(iter(said.values())), tuple(said))
