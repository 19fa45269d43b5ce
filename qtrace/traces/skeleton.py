"""The modules of a stored trace as a tree that can be aligned and described, but not run."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from qtrace.diagnosis.operators.code import forward_of
from qtrace.engine.events import signature_of
from qtrace.engine.model import Model
from qtrace.engine.pair import spec_of
from qtrace.engine.samples import describe_inputs
from qtrace.errors import UsageError
from qtrace.numerics import NoValues, plain
from qtrace.traces.literals import decode, encode
from qtrace.traces.manifest import StoredInput, StoredModule, StoredParameter, StoredSignature
from qtrace.traces.reader import Trace, without_values
from qtrace.traces.shards import bytes_of
from qtrace.tree import PLAIN


class Skeleton(torch.nn.Module):
    """A module without code: it has the class name, the plain attributes, and the parameters without values.

    `stored` is its record in the trace; `trace` is the whole trace, at the root only.
    """

    stored: StoredModule | None = None
    trace: Trace | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to run: the outputs are stored in the trace."""
        raise UsageError("a stored trace cannot be run on inputs of its own; capture the model again on these inputs")


def skeleton(trace: Trace) -> Skeleton:
    """Return the root of the trace's modules, each under its path."""
    made: dict[str, Skeleton] = {}
    for stored in trace.manifest.modules:
        module = _made(stored) if stored.alias_of is None else made[stored.alias_of]
        made[stored.path] = module
        if stored.path:
            _around(made, stored.path)._modules[stored.path.rpartition(".")[2]] = module
    root = made.setdefault("", _made(StoredModule(path="", type=trace.manifest.model.type)))
    root.trace = trace
    # An entry other than forward is looked up as an attribute of the root.
    vars(root).setdefault(trace.manifest.call, root.forward)
    return root.eval()


def trace_of(model: torch.nn.Module) -> Trace | None:
    """Return the trace that a skeleton represents, None for a model that can run."""
    return model.trace if isinstance(model, Skeleton) else None


def _around(made: dict[str, Skeleton], path: str) -> Skeleton:
    """Return the module around a path; where the trace records none, an empty module is put there."""
    parent = path.rpartition(".")[0]
    if parent not in made:
        made[parent] = _made(StoredModule(path=parent, type="Module"))
        if parent:
            _around(made, parent)._modules[parent.rpartition(".")[2]] = made[parent]
    return made[parent]


def _made(stored: StoredModule) -> Skeleton:
    # Python accepts any text of a manifest as a class name, except for this character.
    module: Skeleton = type(stored.type.replace("\0", ""), (Skeleton,), {})()
    module.stored = stored
    held = vars(module)
    held.update({name: decode(value) for name, value in stored.attributes.items() if name not in held})
    held.update({name: _named(function) for name, function in stored.functions.items() if name not in held})
    for mine, theirs in ((module._parameters, stored.parameters), (module._buffers, stored.buffers)):
        mine.update({name: None if one is None else _parameter(one) for name, one in theirs.items()})
    return module


def _named(qualified: str) -> Any:
    def function() -> None:
        """Replace a function that a trace knows by name only."""

    function.__qualname__ = qualified
    return function


def _parameter(stored: StoredParameter) -> Any:
    return torch.nn.Parameter(without_values(stored.shape or (), stored.dtype), requires_grad=False)


_FUNCTIONS = (FunctionType, BuiltinFunctionType)


def described(model: Model) -> Iterator[StoredModule]:
    """Yield an entry for each place of the tree; each parameter and buffer is read once."""
    known: dict[int, StoredParameter | None] = {}
    for path, module in model.root.named_modules(remove_duplicate=False):
        if path in model.aliases:
            yield StoredModule(path=path, type=type(module).__name__, alias_of=model.aliases[path])
        else:
            yield _module(path, module, known)


def inputs_of(samples: Sequence[Any]) -> tuple[StoredInput, ...]:
    """Return an entry for each leaf of each sample; positional arguments are named by their number."""
    names = [field.name for field in dataclasses.fields(StoredInput)]
    return tuple(
        StoredInput(**{name: entry[name] for name in names if name in entry})
        for entry in describe_inputs(samples)
        if entry["spec"] is not None
    )


def content(tensor: torch.Tensor) -> str | None:
    """Return the SHA-256 of a tensor's values, None where it has no values to read."""
    try:
        return hashlib.sha256(bytes_of(plain(tensor))).hexdigest()
    except NoValues:
        return None


def parameter(tensor: torch.Tensor) -> StoredParameter:
    """Return the record of a parameter or buffer in a trace."""
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


def with_one_sample(model: torch.nn.Module, index: int) -> torch.nn.Module:
    """Return the skeleton of a trace reduced to sample `index`; a model that can run is returned as it is."""
    trace = trace_of(model)
    if trace is None:
        return model
    manifest = trace.manifest
    one = copy.copy(trace)
    one.manifest = dataclasses.replace(
        manifest,
        samples=manifest.samples[index : index + 1],
        inputs=tuple(dataclasses.replace(given, sample=0) for given in manifest.inputs if given.sample == index),
    )
    return skeleton(one)
