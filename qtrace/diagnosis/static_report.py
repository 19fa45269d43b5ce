"""The static comparison of a whole pair: every aligned module, said once for all layers that say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qtrace.diagnosis.module_differences import attribute_differences, tensor_differences
from qtrace.diagnosis.suspects import role
from qtrace.engine.model import Model
from qtrace.engine.plan import Plan
from qtrace.numerics import NoValues, plain
from qtrace.tree import join

_MOST_NOTES = 20


@dataclass(frozen=True, slots=True)
class StaticNote:
    """What differs between a module and its partner before anything runs.

    `module` is a reference path; where several modules say the same, a pattern of theirs (`layers.*.norm`),
    and `members` are their paths.
    """

    module: str
    sentence: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        count = f" ({len(self.members)} modules)" if len(self.members) > 1 else ""
        return f"{self.module or '<root>'}{count}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter of the reference, and the candidate's that answers to it."""

    name: str
    reference: torch.Tensor
    candidate: torch.Tensor


def static_report(models: tuple[Model, Model], plan: Plan) -> list[StaticNote]:
    """Return what differs between all aligned modules, at most 20 notes; the weights are read, nothing runs.

    In this order: ties between parameters that were lost or made, attributes, parameters and buffers; of
    these, what few modules say comes before what many say.
    """
    attributes: list[tuple[str, str]] = []
    tensors: list[tuple[str, str]] = []
    weights: list[_Weight] = []
    for key, place, candidates in _answering(models, plan):
        reference = models[0].modules[key]
        attributes += [(key, sentence) for sentence in attribute_differences(reference, candidates)]
        tensors += [(key, sentence) for sentence in tensor_differences(reference, candidates)]
        weights += _weights(place, reference, candidates)
    notes = [*_ties(weights), *_grouped(attributes), *_grouped(tensors, end=" (")]
    if len(notes) > _MOST_NOTES:
        left = len(notes) - _MOST_NOTES + 1
        notes[_MOST_NOTES - 1 :] = [StaticNote("", f"{left} more modules or groups of modules differ", ("",))]
    return notes


def pattern_of(paths: Sequence[str]) -> str:
    """Return what paths of one form have in common: a number that is not the same in all becomes `*`.

    >>> pattern_of(["layers.0.experts.3", "layers.1.experts.3"])
    'layers.*.experts.3'
    """
    columns = zip(*(path.split(".") for path in paths), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)


def _grouped(said: Sequence[tuple[str, str]], end: str = "\n") -> list[StaticNote]:
    """Group the sentences that agree up to `end`; what comes after it is told where all say the same."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for path, sentence in said:
        head = sentence.split(end)[0]
        # A module that stands in two places may say the same twice.
        groups.setdefault((role(path), head), {})[path] = sentence
    notes = []
    for (_, head), sentences in groups.items():
        first, *others = sentences.values()
        sentence = first if all(other == first for other in others) else head
        notes.append(StaticNote(pattern_of(list(sentences)), sentence, tuple(sentences)))
    return sorted(notes, key=lambda note: len(note.members))


def _answering(models: tuple[Model, Model], plan: Plan) -> Iterator[tuple[str, str, list[torch.nn.Module]]]:
    """Yield (reference path, place, candidate's modules), a wrapper before what is inside it.

    `place` is the reference path, too; where the reference has one module in several places and the candidate has
    several, each is yielded, under the candidate's path.
    """
    repeated = set(models[0].aliases.values())
    groups: dict[str, list[list[str]]] = {}
    for path, key in plan.candidate_keys.items():
        own = groups.setdefault(key, [])
        around = (group for group in own if key not in repeated or path.startswith(f"{group[0]}."))
        group = next(around, None)
        if group is None:
            own.append([path])
        else:
            group.append(path)
    for key, own in groups.items():
        for number, group in enumerate(own):
            yield key, group[0] if number else key, [models[1].modules[path] for path in group]


def _weights(place: str, reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[_Weight]:
    for name, mine in reference._parameters.items():
        theirs = next((c._parameters[name] for c in candidates if c._parameters.get(name) is not None), None)
        if mine is not None and theirs is not None and not mine.is_meta and not theirs.is_meta:
            yield _Weight(join(place, name), mine, theirs)


def _ties(weights: Sequence[_Weight]) -> Iterator[StaticNote]:
    """Yield the parameters that are one on one side and two on the other."""
    for tied, apart in (("reference", "candidate"), ("candidate", "reference")):
        groups: dict[int, list[_Weight]] = {}
        for weight in weights:
            groups.setdefault(_place(getattr(weight, tied)), []).append(weight)
        for first, *others in groups.values():
            for other in others:
                one, two = getattr(first, apart), getattr(other, apart)
                if _place(one) != _place(two):
                    values = "of equal values" if _is_equal(one, two) else "of other values"
                    sentence = f"{other.name} is one with it in the {tied}, but two weights {values} in the {apart}"
                    yield StaticNote(first.name, sentence, (first.name,))


def _place(tensor: torch.Tensor) -> int:
    """Return where a tensor's elements lie; for one that does not tell, which object it is."""
    try:
        return tensor.data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _is_equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    try:
        first, second = plain(one), plain(two)
    except NoValues:
        return False
    same = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    return same and torch.equal(first, second)
