"""Converts inputs to samples, one per call of a model; describes inputs and environment for a report."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import nn

from qtrace.engine.pair import spec_of
from qtrace.errors import UsageError, did_you_mean, near
from qtrace.numerics import NoValues, plain
from qtrace.tree import leaves

_PREVIEW = 8
_DIGITS = 16


@dataclass(frozen=True)
class Sample:
    """The arguments of one call, positional and by keyword."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def as_samples(value: object) -> list[Sample]:
    """Return the samples that inputs stand for, one per call.

    A mapping (a BatchEncoding is one, and no dict) gives keyword arguments, a tuple positional ones, a tensor
    the single one; a list of these gives several samples.

    >>> as_samples({"x": 1}), as_samples((1, 2))
    ([Sample(args=(), kwargs={'x': 1})], [Sample(args=(1, 2), kwargs={})])

    Raises:
        UsageError: the value, or an item of the list, is of another type; or the list is empty.
    """
    if not isinstance(value, list):
        return [_as_sample(value, "inputs are")]
    if not value:
        raise UsageError("inputs are an empty list; give at least one sample")
    return [_as_sample(item, f"inputs[{index}] is") for index, item in enumerate(value)]


def _as_sample(value: object, what: str) -> Sample:
    if isinstance(value, Sample):
        return value
    if isinstance(value, torch.Tensor):
        return Sample(args=(value,))
    if isinstance(value, tuple):
        return Sample(args=tuple(value))
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise UsageError(f"{what} a mapping with the key {odd!r}; the keys are argument names, so expected text")
        return Sample(kwargs=dict(value))
    raise UsageError(
        f"{what} of type {type(value).__name__}; expected a mapping of keyword arguments, "
        "a tuple of positional ones, a tensor, or a list of these"
    )


def check_fits(model: nn.Module, sample: Sample, call: str = "forward") -> None:
    """Check that the sample binds to the method that will be called, before anything runs.

    Where the method takes `**kwargs`, a name is refused only if it is one slip away from a known argument that was
    not given: which other names such a method accepts cannot be known.

    Raises:
        UsageError: the model has no such method, or the sample does not fit; the argument is named.
    """
    signature = signature_of(model, call)
    if signature is None:
        return
    known = {name: parameter for name, parameter in signature.parameters.items() if _is_named(parameter)}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    head = f"inputs do not fit {call} of {type(model).__name__}"
    for name in sample.kwargs:
        if name in known:
            continue
        if not takes_any:
            raise UsageError(f"{head}: unexpected argument {name}; {did_you_mean(name, known)}")
        free = [other for other in known if other not in sample.kwargs and _is_slip(name, other)]
        if free:
            raise UsageError(f"{head}: unexpected argument {name}; did you mean {free[0]}?")
    try:
        signature.bind(*sample.args, **sample.kwargs)
    except TypeError as error:
        raise UsageError(f"{head}: {_misfit(signature, sample, str(error))}") from error


def signature_of(model: nn.Module, call: str = "forward") -> inspect.Signature | None:
    """Return the signature of the method that is called, or None where it cannot be read.

    Raises:
        UsageError: the model has no such method; near names are given.
    """
    method = getattr(model, call, None)
    if not callable(method):
        hint = did_you_mean(call, _methods(type(model), call))
        raise UsageError(f"{type(model).__name__} has no method {call} to call; {hint}")
    try:
        return inspect.signature(method)
    except (TypeError, ValueError):
        return None


def _methods(kind: type[nn.Module], like: str) -> list[str]:
    """Return the methods that the user may have meant: any that is spelt alike, else those of the class's own file."""
    bases = [base for base in kind.__mro__ if base not in nn.Module.__mro__]
    known = {base: [name for name, value in vars(base).items() if inspect.isfunction(value)] for base in bases}
    public = [name for names in known.values() for name in names if not name.startswith("_")]
    if near(like, public):
        return public
    own = {name for base, names in known.items() if base.__module__ == kind.__module__ for name in names}
    return sorted(own.intersection(public)) or ["forward"]


def hidden_positions(sample: Any) -> torch.Tensor | None:
    """Return which positions [batch, tokens] of a sample its padding mask hides, as bools; None without a mask.

    Read are "attention_mask", of zeros that hide a position and ones, and torch's "key_padding_mask", which is true
    where a position is hidden. What another mask hides is not known.
    """
    for name, value in sample.kwargs.items():
        is_inverse = name.endswith("key_padding_mask")
        is_mask = is_inverse or name == "attention_mask"
        if is_mask and isinstance(value, torch.Tensor) and value.dim() == 2 and value.numel():
            hidden, shown = (value == mark for mark in ((1, 0) if is_inverse else (0, 1)))
            if bool(hidden.any()) and bool((hidden | shown).all()) and not bool(hidden.all()):
                return hidden
    return None


def named_arguments(model: nn.Module, sample: Sample, call: str = "forward") -> dict[str, Any]:
    """Return the sample's arguments by the names of the method's parameters, as far as they bind."""
    signature = signature_of(model, call)
    if signature is None:
        return dict(sample.kwargs)
    try:
        bound = signature.bind_partial(*sample.args, **sample.kwargs).arguments
    except TypeError:
        return dict(sample.kwargs)
    return {**bound, **sample.kwargs}


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], sample: Sample) -> Sample:
    """Return the sample with each tensor replaced, also those inside tuples, lists and mappings."""

    def replace(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return function(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(replace, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(replace, value))
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        return value

    return Sample(replace(sample.args), replace(sample.kwargs))


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _is_slip(name: str, known: str) -> bool:
    """Return whether one letter was added, dropped, changed or moved by one place."""
    longest = max(len(name), len(known))
    if longest < 4 or abs(len(name) - len(known)) > 1:
        return False
    matched = sum(block.size for block in SequenceMatcher(None, name, known, False).get_matching_blocks())
    return matched >= longest - 1


def _misfit(signature: inspect.Signature, sample: Sample, problem: str) -> str:
    """Return why the sample does not bind: missing arguments or excess ones, and those that the method takes."""
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [name for name, kind in kinds.items() if kind not in several]
    positional = [name for name in single if kinds[name] is not inspect.Parameter.KEYWORD_ONLY]
    takes = f"it takes {', '.join(single) or 'none'}"
    if len(sample.args) > len(positional):
        return f"{len(sample.args)} positional arguments are given, and {takes}"
    given = {*positional[: len(sample.args)], *sample.kwargs}
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is inspect.Parameter.empty and _is_named(parameter) and name not in given
    ]
    if missing:
        return f"missing argument{'s' if len(missing) > 1 else ''} {', '.join(missing)}; {takes}"
    return f"{problem}; {takes}"


def environment() -> dict[str, Any]:
    """Return the facts that a number may depend on: versions, platform, threads, the seed of torch's random numbers."""
    versions = {}
    for name in ("torch", "transformers", "numpy", "tico", "torchao"):
        if name in sys.modules:
            version = getattr(sys.modules[name], "__version__", None)
            versions[name] = str(version) if version is not None else metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
        "versions": versions,
    }


def describe_inputs(samples: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield an entry per leaf of each sample: its name, its spec, its first values, a digest of all values."""
    for index, sample in enumerate(samples):
        named = {**{str(i): value for i, value in enumerate(sample.args)}, **sample.kwargs}
        for name, leaf in leaves(named):
            entry = {"sample": index, "name": name, "spec": spec_of(leaf, values=True), "digest": _digest(leaf)}
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                entry["values"] = _preview(leaf)
            yield entry


def _digest(leaf: Any) -> str:
    """Return a digest of a value's type, shape and elements; without readable elements, of the first two."""
    if not isinstance(leaf, torch.Tensor):
        said = repr(leaf)
        # The default text of an object contains its address, which is different in every run.
        said = type(leaf).__name__ if " at 0x" in said else said
        return hashlib.sha256(said.encode()).hexdigest()[:_DIGITS]
    found = hashlib.sha256(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
    with contextlib.suppress(NoValues):
        found.update(plain(leaf.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:_DIGITS]


def _preview(tensor: torch.Tensor) -> str:
    first = plain(tensor.detach()).flatten()[:_PREVIEW].cpu()
    values = first.double() if first.is_floating_point() else first
    return np.array2string(values.numpy(), precision=4, separator=", ").replace("\n", "")
