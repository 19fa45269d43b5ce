"""Finds the differences between aligned modules before anything runs: parameters, buffers, plain attributes, ties."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from qtrace.diagnosis.suspects import role
from qtrace.diagnosis.tensor_differences import tensor_differences
from qtrace.engine.model import Model
from qtrace.engine.plan import Plan
from qtrace.numerics import NoValues, plain
from qtrace.tree import join

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_FUNCTIONS = (FunctionType, BuiltinFunctionType)
# What every module has, and what only says where a module stands.
_OF_MODULES = frozenset(vars(torch.nn.Module())) - {"training"}
_PLACES = ("layer_idx", "layer_id", "layer_index")
_ABSENT = object()
# Entries of a configuration that no module computes with.
_NOT_READ = ("dtype", "version", "cache", "output_", "return_", "token_id", "label", "chunk", "initializer")
_NO_COMPUTATION = ("__init__", "__call__", "train", "eval", "extra_repr")
_MOST_NOTES = 20


def static_differences(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Yield each difference in words: "eps 1e-06 against 1e-05", "weight differs in 1 of 64 rows (17: opposite sign)".

    `candidates` are this module's partners in the candidate, a wrapper and the modules inside it; a name is searched
    for in each. A name on one side only is no difference: wrappers keep things under other names, and quantizers add a
    scale and a zero point. A mode differs only if the module depends on it.
    """
    yield from attribute_differences(reference, candidates)
    yield from tensor_differences(reference, candidates)


def attribute_differences(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Yield the plain attributes that differ: numbers, text, tuples of them, dtypes, functions by their names.

    Entries of a plain dictionary are attributes of their own, as `rope_scaling.factor`.
    """
    held = [_settings(candidate) for candidate in candidates]
    for name, mine in _settings(reference).items():
        theirs = next((settings[name] for settings in held if name in settings), _ABSENT)
        if theirs is _ABSENT or _is_same(mine, theirs) or name in _PLACES:
            continue
        if name != "training" or minds_mode(reference) or any(minds_mode(c) for c in candidates):
            yield f"{name} {_shown(mine)} against {_shown(theirs)}"


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    """Return a module's plain attributes by name, with the entries of plain dictionaries."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in _OF_MODULES:
            continue
        if _is_plain(value):
            found[name] = value
        elif type(value) is dict:
            found |= {
                f"{name}.{key}": entry for key, entry in value.items() if isinstance(key, str) and _is_plain(entry)
            }
    return found


def config_differences(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Yield what differs in the configurations that two modules hold: numbers and flags by their names.

    All modules of a model share one configuration, so an entry may be without effect in this module. What only says how
    a model is stored or run is left out.
    """
    theirs: Mapping[Any, Any] = next((held for c in candidates if (held := config_entries(c))), {})
    for name, value in config_entries(reference).items():
        is_read = isinstance(value, (bool, int, float)) and not any(part in str(name) for part in _NOT_READ)
        if is_read and name in theirs and not _is_same(value, theirs[name]):
            yield f"config.{name} {_shown(value)} against {_shown(theirs[name])}"


def config_entries(module: torch.nn.Module) -> Mapping[Any, Any]:
    """Return the entries of the configuration that a module holds, an object's or a mapping's; none without one."""
    with contextlib.suppress(Exception):  # a property of anybody's may raise anything
        config = getattr(module, "config", None)
        return config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    return {}


def minds_mode(module: torch.nn.Module) -> bool:
    """Return whether a module computes something else in training mode than in eval mode.

    Of torch's own modules these do: dropout that drops, normalisation by running statistics, RReLU. Any other module
    does if the code of its class reads `training`.
    """
    nn = torch.nn
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.running_mean is not None
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return bool(module.dropout > 0)
    if type(module).__module__.startswith("torch.nn"):
        return isinstance(module, nn.RReLU)
    kind: type = type(module)
    return _reads_training(kind)


@lru_cache(maxsize=1024)
def _reads_training(kind: type) -> bool:
    own = [base for base in kind.__mro__ if issubclass(base, torch.nn.Module) and base is not torch.nn.Module]
    functions = (
        inspect.unwrap(value)
        for base in own
        for name, value in vars(base).items()
        if isinstance(value, FunctionType) and name not in _NO_COMPUTATION
    )
    return any("training" in function.__code__.co_names for function in functions)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, (*_PLAIN, *_FUNCTIONS))


def _is_same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, _FUNCTIONS) or isinstance(theirs, _FUNCTIONS):
        # It may be the same function as another object. One without a name of its own, as a lambda, cannot be compared.
        return "<" in _shown(mine) + _shown(theirs) or _shown(mine) == _shown(theirs)
    return bool(mine == theirs) or (mine != mine and theirs != theirs)


def _shown(value: Any) -> str:
    return str(value.__qualname__ if isinstance(value, _FUNCTIONS) else value)


@dataclass(frozen=True, slots=True)
class StaticNote:
    """A difference between a module and its partner before anything runs.

    `module` is a reference path. If several modules differ in the same way, it is a pattern (`layers.*.norm`), and
    `members` are their paths.
    """

    module: str
    sentence: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        count = f" ({len(self.members)} modules)" if len(self.members) > 1 else ""
        return f"{self.module or '<root>'}{count}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter of the reference, and the candidate's parameter aligned with it."""

    name: str
    reference: torch.Tensor
    candidate: torch.Tensor


def static_report(models: tuple[Model, Model], plan: Plan) -> list[StaticNote]:
    """Return the differences between all aligned modules, at most 20 notes; the weights are read, nothing runs.

    The order is: ties between parameters that were lost or made, attributes, parameters and buffers. Within these,
    differences of few modules come before differences of many.
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
    """Return the pattern of paths of one form: a number that is not the same in all of them becomes `*`.

    >>> pattern_of(["layers.0.experts.3", "layers.1.experts.3"])
    'layers.*.experts.3'
    """
    columns = zip(*(path.split(".") for path in paths), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)


def _grouped(said: Sequence[tuple[str, str]], end: str = "\n") -> list[StaticNote]:
    """Return the sentences grouped by their text up to `end`; the rest is kept where it is the same in all."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for path, sentence in said:
        head = sentence.split(end)[0]
        # A module in two places may have the same sentence twice.
        groups.setdefault((role(path), head), {})[path] = sentence
    notes = []
    for (_, head), sentences in groups.items():
        first, *others = sentences.values()
        sentence = first if all(other == first for other in others) else head
        notes.append(StaticNote(pattern_of(list(sentences)), sentence, tuple(sentences)))
    return sorted(notes, key=lambda note: len(note.members))


def _answering(models: tuple[Model, Model], plan: Plan) -> Iterator[tuple[str, str, list[torch.nn.Module]]]:
    """Yield (reference path, place, candidate's modules), a wrapper before the modules inside it.

    `place` is the reference path, too. If the reference has one module in several places, and the candidate has
    several modules there, each is yielded under the candidate's path.
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
                    sentence = (
                        f"{other.name} is tied to it in the {tied}, but a weight of its own {values} in the {apart}"
                    )
                    yield StaticNote(first.name, sentence, (first.name,))


def _place(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's elements; for a tensor without one, the id of the object."""
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
