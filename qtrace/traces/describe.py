"""What a trace keeps of a model beside its calls: the tree of modules, their data by digest, and the inputs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from qtrace.diagnosis.operators.code_investigation import forward_of
from qtrace.engine.arguments import signature_of
from qtrace.engine.environment import describe_inputs
from qtrace.engine.model import Model
from qtrace.engine.pair import spec_of
from qtrace.numerics import NoValues, plain
from qtrace.traces.literals import encode
from qtrace.traces.manifest import StoredInput, StoredModule, StoredParameter, StoredSignature
from qtrace.traces.shards import bytes_of
from qtrace.tree import PLAIN

_FUNCTIONS = (FunctionType, BuiltinFunctionType)


def described(model: Model) -> Iterator[StoredModule]:
    """Yield an entry per place of the tree; parameters and buffers are read once each."""
    known: dict[int, StoredParameter | None] = {}
    for path, module in model.root.named_modules(remove_duplicate=False):
        if path in model.aliases:
            yield StoredModule(path=path, type=type(module).__name__, alias_of=model.aliases[path])
        else:
            yield _module(path, module, known)


def inputs_of(samples: Sequence[Any]) -> tuple[StoredInput, ...]:
    """Return an entry per leaf of each sample; positional arguments are named by their number."""
    names = [field.name for field in dataclasses.fields(StoredInput)]
    return tuple(
        StoredInput(**{name: entry[name] for name in names if name in entry})
        for entry in describe_inputs(samples)
        if entry["spec"] is not None
    )


def content(tensor: torch.Tensor) -> str | None:
    """Return the SHA-256 of a tensor's values, None where it has none to read."""
    try:
        return hashlib.sha256(bytes_of(plain(tensor))).hexdigest()
    except NoValues:
        return None


def parameter(tensor: torch.Tensor) -> StoredParameter:
    """Return a parameter or buffer as a trace keeps it."""
    spec = spec_of(tensor)
    assert spec is not None
    return StoredParameter(shape=spec.shape, dtype=spec.dtype, digest=content(tensor))


def _module(path: str, module: torch.nn.Module, known: dict[int, StoredParameter | None]) -> StoredModule:
    signature, held = signature_of(module), vars(module)
    return StoredModule(
        path=path,
        type=type(module).__name__,
        attributes={name: encode(value) for name, value in held.items() if _is_told(name, value)},
        functions={name: value.__qualname__ for name, value in held.items() if isinstance(value, _FUNCTIONS)},
        parameters=_held(module._parameters, known),
        buffers=_held(module._buffers, known),
        signature=StoredSignature(
            positional=signature.positional,
            defaults={name: encode(value) for name, value in signature.defaults.items() if _is_plain(value)},
            named=signature.named,
        ),
        forward=forward_of(module),
    )


def _held(
    tensors: Mapping[str, torch.Tensor | None], known: dict[int, StoredParameter | None]
) -> dict[str, StoredParameter | None]:
    for tensor in tensors.values():
        if tensor is not None and id(tensor) not in known:
            known[id(tensor)] = parameter(tensor)
    return {name: None if tensor is None else known[id(tensor)] for name, tensor in tensors.items()}


def _is_told(name: str, value: Any) -> bool:
    # Names of modules may be kept in private attributes, too.
    return isinstance(value, str) or (_is_plain(value) and not name.startswith("_") and name != "training")


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)
