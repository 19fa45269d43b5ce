"""Finds the differences between aligned modules before anything runs: parameters, buffers, plain attributes, ties."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from qtrace.diagnosis.suspects import role
from qtrace.engine.model import Model
from qtrace.engine.plan import Plan
from qtrace.numerics import NoValues, measure, plain
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import Statistics, Status
from qtrace.tree import join

_BLOCK = 1 << 20
_MOST_ROWS = 4
_PLAIN = (bool, int, float, str, type(None), torch.dtype)
_FUNCTIONS = (FunctionType, BuiltinFunctionType)
# What every module has, and what only says where a module stands.
_OF_MODULES = frozenset(vars(torch.nn.Module())) - {"training"}
_PLACES = ("layer_idx", "layer_id", "layer_index")
_ABSENT = object()
# Entries of a configuration that no module computes with.
_NOT_READ = ("dtype", "version", "cache", "output_", "return_", "token_id", "label", "chunk", "initializer")
# Under weight norm and other parametrizations these are computed, and held under other names.
_COMPUTED = ("weight", "bias")
_NO_COMPUTATION = ("__init__", "__call__", "train", "eval", "extra_repr")
# Two independent random tensors of n elements have a cosine of about 1/sqrt(n).
_UNRELATED = 4.0
_ENOUGH_ELEMENTS = 256
_MOST_NOTES = 20


class RowDifferences:
    """The rows (along the first axis) of two tensors of one shape that differ by more than `limit` anywhere.

    A value that is not finite on one side only makes its row differ.
    """

    def __init__(self, reference: torch.Tensor, candidate: torch.Tensor, limit: float) -> None:
        self._reference = reference.reshape(reference.shape[0], -1) if reference.dim() else reference.reshape(1, 1)
        self._candidate = candidate.reshape(self._reference.shape)
        self._limit = limit
        self._of_matrix = reference.dim() > 1
        self.rows: list[int] = []
        first = 0
        for mine, theirs in self._blocks():
            apart = ((mine - theirs).abs() <= limit) | (mine == theirs) | (mine.isnan() & theirs.isnan())
            self.rows += [first + int(row) for row in (~apart.all(1)).nonzero().flatten()]
            first += len(mine)

    def is_everywhere(self) -> bool:
        """Return whether every row differs."""
        return len(self.rows) == len(self._reference)

    def words(self) -> str:
        """Return in words which rows differ: "differs in 1 of 64 rows (17: opposite sign)"."""
        if not self.rows:
            return "differs by little more than rounding"
        named = [f"{row}{self._how(row)}" for row in self.rows[:_MOST_ROWS]]
        more = ", …" if len(self.rows) > _MOST_ROWS else ""
        what = "rows" if self._of_matrix else "entries"
        return f"differs in {len(self.rows)} of {len(self._reference)} {what} ({', '.join(named)}{more})"

    def factor(self) -> float | None:
        """Return the one factor between all of the candidate's values and the reference's, or None."""
        product = energy = 0.0
        for mine, theirs in self._blocks():
            product += float((mine * theirs).sum())
            energy += float((mine * mine).sum())
        if not energy:
            return None
        factor = product / energy
        if abs(factor + 1) <= 1e-6:
            factor = -1.0
        limit = self._limit * max(1.0, abs(factor))
        held = all(bool(((mine * factor - theirs).abs() <= limit).all()) for mine, theirs in self._blocks())
        return factor if held else None

    def is_permuted(self) -> bool:
        """Return whether the candidate has the reference's rows, bit by bit, in another order."""
        mine, theirs = self._reference.detach().cpu(), self._candidate.detach().cpu()
        if not self._of_matrix or mine.dtype != theirs.dtype or not mine.shape[1]:
            return False
        # Comparing the largest value of each row rules out nearly all other tensors at the cost of one read.
        if not torch.equal(mine.amax(1).sort().values, theirs.amax(1).sort().values):
            return False
        return sorted(_digests(mine)) == sorted(_digests(theirs))

    def _how(self, row: int) -> str:
        mine, theirs = self._reference[row].double(), self._candidate[row].double()
        if not bool(theirs.isfinite().all()):
            return ": not finite"
        if not bool(theirs.any()):
            return ": zero"
        if bool(((mine + theirs).abs() <= self._limit).all()):
            return ": opposite sign"
        energy = float((mine * mine).sum())
        factor = float((mine * theirs).sum()) / energy if energy else 0.0
        limit = self._limit * max(1.0, abs(factor))
        if factor and len(mine) > 1 and bool(((mine * factor - theirs).abs() <= limit).all()):
            return f": {factor:.4g} times"
        return ""

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield both sides in float64, some rows at a time."""
        step = max(1, _BLOCK // max(1, self._reference.shape[1]))
        for first in range(0, len(self._reference), step):
            mine, theirs = (t[first : first + step].detach().cpu() for t in (self._reference, self._candidate))
            yield mine.double(), theirs.double()


def _digests(matrix: torch.Tensor) -> Iterator[bytes]:
    for row in matrix:
        yield hashlib.blake2b(row.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


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
    mine = getattr(reference, "config", None)
    theirs = next((c.config for c in candidates if getattr(c, "config", None) is not None), None)
    entries = [getattr(config, "__dict__", {}) for config in (mine, theirs)]
    for name, value in entries[0].items():
        is_read = isinstance(value, (bool, int, float)) and not any(part in name for part in _NOT_READ)
        if is_read and name in entries[1] and not _is_same(value, entries[1][name]):
            yield f"config.{name} {_shown(value)} against {_shown(entries[1][name])}"


def tensor_differences(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Yield the parameters and buffers that differ by more than the rounding of their dtypes.

    A weight that is computed from other parameters, as under weight norm, is compared as it is computed. How a weight
    is stored is no difference: transposed, or with axes of size 1 more or less.
    """
    theirs_by_name = [_held_tensors(candidate) for candidate in candidates]
    ours = _held_tensors(reference)
    for name, mine in ours.items():
        held = [tensors[name] for tensors in theirs_by_name if name in tensors]
        theirs = next((tensor for tensor in held if tensor is not None), None)
        if mine is not None and theirs is not None:
            other = _exchanged(name, theirs, ours)
            if other is not None:
                yield f"{name} holds the reference's {other}: exchanged, or assigned to another name"
                continue
            yield from _tensors(name, mine, theirs, turned=name == "weight" and _is_turned(reference, candidates))
        elif held and (mine is None) != (theirs is None):
            there = [f"{list(t.shape)}" if t is not None else "None" for t in (mine, theirs)]
            yield f"{name} {there[0]} against {there[1]}"


def _held_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """Return a module's parameters and buffers by name, and its weight and bias where they are computed."""
    found: dict[str, torch.Tensor | None] = {**module._parameters, **module._buffers}
    for name in _COMPUTED if found or module._modules else ():
        if name not in found:
            with contextlib.suppress(Exception):  # a property of anybody's may raise anything
                value = getattr(module, name, None)
                if isinstance(value, torch.Tensor):
                    found[name] = value
    return found


def stored_alike(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor | None:
    """Return the candidate's tensor in the shape of the reference's, where that is only a matter of how it is stored.

    Axes of size 1 may be more or less, and two axes exchanged: a 1 x 1 convolution's weight for a linear layer's, or
    `Conv1D`'s for `Linear`'s. None where the shapes leave neither.
    """
    if reference.shape == candidate.shape:
        return candidate
    if reference.numel() != candidate.numel():
        return None
    wanted, given = ([n for n in t.shape if n != 1] for t in (reference, candidate))
    if wanted == given:
        return candidate.reshape(reference.shape)
    if len(wanted) == 2 and wanted == given[::-1]:
        return candidate.reshape(given).t().reshape(reference.shape)
    return None


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


def _exchanged(name: str, candidate: torch.Tensor, tensors: Mapping[str, torch.Tensor | None]) -> str | None:
    """Return which other tensor of a module the candidate's tensor of this name equals; None where it is this one."""
    equal = [key for key, tensor in tensors.items() if tensor is not None and holds_the_same(tensor, candidate)]
    return equal[0] if equal and name not in equal else None


def holds_the_same(reference: torch.Tensor, candidate: torch.Tensor) -> bool:
    """Return whether two tensors of one shape hold equal values that are not all one number."""
    if reference.shape != candidate.shape or reference.device != candidate.device or candidate.numel() < 2:
        return False
    try:
        first, second = plain(reference), plain(candidate)
    except NoValues:
        return False
    return torch.equal(first, second) and bool((first != first.flatten()[0]).any())


def _is_turned(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> bool:
    """Return whether one side's class holds its weight transposed: transformers' `Conv1D` stands for a linear layer."""
    names = [type(reference).__name__, *(type(candidate).__name__ for candidate in candidates[-1:])]
    return len({name == "Conv1D" for name in names}) == 2 and any("Linear" in name for name in names)


def _tensors(name: str, reference: torch.Tensor, candidate: torch.Tensor, *, turned: bool = False) -> Iterator[str]:
    if reference is candidate:
        return
    if turned and candidate.dim() == 2 and candidate.shape[0] == candidate.shape[1]:
        if torch.equal(reference, candidate):
            yield f"{name} holds the reference's values, but is not transposed as its class has it"
            return
        candidate = candidate.t()
    try:
        first, second = plain(reference), plain(candidate)
    except NoValues:
        return
    relaid = stored_alike(first, second)
    if relaid is None:
        there = f"{name} {list(reference.shape)} against {list(candidate.shape)}"
        flat = [t.flatten(1) for t in (first, second)] if min(first.dim(), second.dim()) > 1 else []
        if flat and flat[0].shape == flat[1].shape and not torch.equal(*flat):
            is_same_set = torch.equal(*(t.sort(1).values for t in flat))
            there += ", with the reference's columns in another order" if is_same_set else ", with other values"
        yield there
        return
    second = relaid
    try:
        found = measure(first, second).result()
    except NoValues:
        return
    bad = found.non_finite or (0, 0)
    if bad[0] != bad[1]:
        yield f"{name} holds {bad[1]} values that are not finite, against {bad[0]} in the reference"
    rounding = rounding_tolerance((first.dtype, second.dtype), 0)
    # A constant tensor, as a fresh norm's weight, has no interval to measure against.
    size = found.peir if found.status is not Status.CONSTANT_REFERENCE else found.rel_l2
    if not found.max or (size is not None and size <= rounding):
        return
    if first.numel() == 1:
        yield f"{name} {first.item():g} against {second.item():g}"
    else:
        yield f"{name} {_how(first, second, found, rounding)}"


def _how(first: torch.Tensor, second: torch.Tensor, found: Statistics, rounding: float) -> str:
    """Return in words how two tensors of one shape differ: in some rows, or everywhere and then in which way."""
    low, high = found.reference_min or 0.0, found.reference_max or 0.0
    value = second.flatten()[0]
    if low != high and bool((second == value).all()):
        return f"is {value.item():g} everywhere, the reference's is not constant"
    rows = RowDifferences(first, second, rounding * (high - low if low != high else abs(high)))
    if len(rows.rows) > 1 and rows.is_permuted():
        return "has the reference's rows in another order"
    if not rows.is_everywhere():
        return rows.words()
    shift = float((second.double() - first.double()).mean())
    if bool(
        ((second.double() - first.double() - shift).abs() <= rounding * max(abs(low), abs(high), abs(shift))).all()
    ):
        return f"is the reference's {'plus' if shift > 0 else 'minus'} {abs(shift):.6g}"
    factor = rows.factor() if found.cosine is not None and 1 - found.cosine**2 <= rounding else None
    if factor is not None:
        return "has the opposite sign" if factor == -1 else f"is {factor:.6g} times the reference's"
    if first.dim() == 2 and first.shape[0] == first.shape[1] and torch.equal(first.t(), second):
        return "is the reference's transposed"
    if first.dim() > 1 and torch.equal(*(t.flatten(1).sort(1).values for t in (first, second))):
        return "has the reference's columns in another order"
    if torch.equal(*(t.flatten().sort().values for t in (first, second))):
        return "has the reference's values in another order"
    for dtype in (torch.bfloat16, torch.float16):
        if first.dtype is torch.float32 and torch.equal(first.to(dtype).float(), second.float()):
            return f"is the reference's, rounded to {str(dtype).removeprefix('torch.')}"
    noise = _UNRELATED / math.sqrt(first.numel())
    if first.numel() >= _ENOUGH_ELEMENTS and found.cosine is not None and abs(found.cosine) <= noise:
        return "is unrelated to the reference's: never loaded, or in another basis"
    # No figure: repeated layers with one fault are recognised by the same words.
    return "differs everywhere"


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
