"""Opens a stored trace: its manifest, its tensors on demand, its inputs, and its contents module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qtrace.engine.samples import Sample
from qtrace.errors import UsageError
from qtrace.numerics import Summary
from qtrace.report.records import TensorSpec
from qtrace.traces.excerpt import as_sketch
from qtrace.traces.literals import decode
from qtrace.traces.manifest import Manifest, StoredCall, StoredSample, StoredTensor, StoredValue
from qtrace.traces.manifest_file import load
from qtrace.traces.shards import ShardReader


class Trace:
    """A trace on disk. Opening reads the manifest and each file's header; elements are read on demand.

    Raises:
        SourceError: there is no trace, or a part of it is damaged; the file and the reason are named.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = load(self.folder)
        self._shards = ShardReader(self.folder, self.manifest.shards)
        self._shards.check()
        self._shards.close()

    @property
    def name(self) -> str:
        """Return the SPEC of the trace."""
        return f"trace:{self.folder}"

    def tensor(self, number: int) -> torch.Tensor:
        """Read one tensor of the manifest: a sketch where only this is stored, a meta tensor where no values are."""
        entry = self.manifest.tensors[number]
        if entry.shard is None:
            return without_values((0,) if entry.spec.shape is None else entry.spec.shape, entry.spec.dtype)
        elements = self._shards.read(entry)
        if self.manifest.sketches:
            return as_sketch(elements, entry.spec, _summary(entry))
        is_complex = (entry.spec.dtype or "").startswith("complex") and elements.is_floating_point()
        return torch.view_as_complex(elements) if is_complex and elements.dtype.itemsize > 2 else elements

    def close(self) -> None:
        """Close the files that are open."""
        self._shards.close()


class Values:
    """The nested values of one sample, in the order of its events; a tensor is read once and kept while it is needed.

    Tensors that are needed again are kept, up to `most` bytes; beyond that they are read again. A tensor of the trace
    is one object while it is kept, so that a pair of tensors need not be compared twice.
    """

    def __init__(self, trace: Trace, sample: StoredSample, most: int = 512 << 20) -> None:
        self._trace = trace
        self._most = most
        self._kept: dict[int, torch.Tensor] = {}
        self._kept_bytes = 0
        self._objects: dict[int, StoredObject] = {}
        self._uses: Counter[int] = Counter()
        for call in sample.calls:
            self._uses.update(_tensors_of((*call.arguments.values(), call.outputs)))
        if sample.returned is not None:
            self._uses.update(_tensors_of([sample.returned]))

    def value(self, stored: StoredValue) -> Any:
        """Return a nested value with the stored leaves under the same paths."""
        found = {leaf.path: self._leaf(leaf.tensor, leaf.plain) for leaf in stored.leaves}
        if stored.object is not None:
            held = self._objects.setdefault(stored.object, StoredObject())
            vars(held).clear()
            vars(held).update(found)
            return held
        return found[""] if found.keys() == {""} else found

    def skip(self, values: Iterable[StoredValue]) -> None:
        """Release values that are not requested."""
        for number in _tensors_of(values):
            self._used(number)

    def _leaf(self, number: int | None, plain: Any) -> Any:
        if number is None:
            return decode(plain)
        tensor = self._kept.get(number)
        if tensor is None:
            tensor = self._trace.tensor(number)
            size = self._trace.manifest.tensors[number].bytes
            if self._uses[number] > 1 and self._kept_bytes + size <= self._most:
                self._kept[number] = tensor
                self._kept_bytes += size
        self._used(number)
        return tensor

    def _used(self, number: int) -> None:
        self._uses[number] -= 1
        if self._uses[number] <= 0 and self._kept.pop(number, None) is not None:
            self._kept_bytes -= self._trace.manifest.tensors[number].bytes


class StoredObject:
    """Replaces an object, such as a cache, that held tensors in attributes; `vars` has the tensors by path."""


def _tensors_of(values: Iterable[StoredValue]) -> Iterator[int]:
    for value in values:
        for leaf in value.leaves:
            if leaf.tensor is not None:
                yield leaf.tensor


def _summary(entry: StoredTensor) -> Summary:
    return Summary(entry.spec.min, entry.spec.max, entry.mean, entry.stddev, entry.non_finite or 0)


def without_values(shape: tuple[int, ...], dtype: str | None) -> torch.Tensor:
    """Return a tensor on the meta device; a dtype that this version of torch does not know becomes float32."""
    known = getattr(torch, dtype or "", None)
    return torch.empty(shape, dtype=known if isinstance(known, torch.dtype) else torch.float32, device="meta")


def samples_of(trace: Trace) -> list[Sample]:
    """Return the arguments that the model was called with, sample by sample.

    Raises `UsageError` where they are not stored as they were: no arguments are stored, or only a sketch, or they were
    cast, or an argument is an object, which is stored only by its tensors.
    """
    found = []
    manifest = trace.manifest
    why = ""
    if manifest.call != "forward":
        # The arguments of its forward are not the arguments of the method.
        why = f"its model was called by {manifest.call}, whose own arguments are not stored"
    elif not manifest.arguments or manifest.sketches or manifest.cast is not None:
        why = "it holds none (--outputs-only), or not in full (--stats-only, --as)"
    for sample in manifest.samples:
        root = next((call for call in sample.calls if call.module == ""), None)
        if root is None:
            why = why or "it holds no call of the model itself"
        elif not why and not set(root.positional) <= set(root.passed) <= set(root.arguments):
            why = "not all of them are stored"
        elif not why and any(leaf.path for name in root.passed for leaf in root.arguments[name].leaves):
            why = "they are nested"
        if why or root is None:
            raise UsageError(f"{trace.name}: the inputs cannot be taken from the trace: {why}; give --inputs")
        found.append(_sample(root, Values(trace, sample)))
    return found


def _sample(root: StoredCall, values: Values) -> Sample:
    given: dict[str, Any] = {name: values.value(root.arguments[name]) for name in root.passed}
    args = tuple(given.pop(name) for name in root.positional)
    return Sample(args, given)


@dataclass(slots=True)
class ModuleContents:
    """The calls of one module over all samples, the outputs of the first call, and the bytes of its tensors.

    A tensor counts where it occurs first. A tensor that is only passed on, to a callee or to the caller, adds no bytes.
    """

    module: str
    type: str
    calls: int = 0
    outputs: list[TensorSpec] = field(default_factory=list)
    bytes: int = 0


def contents_of(manifest: Manifest) -> list[ModuleContents]:
    """Return an entry per module that was called, in the order of its first call."""
    found: dict[str, ModuleContents] = {}
    known: set[str] = set()
    for sample in manifest.samples:
        for call in sample.calls:
            one = found.setdefault(call.module, ModuleContents(call.module, call.type))
            if not one.calls:
                one.outputs = [manifest.tensors[number].spec for number in _outputs(call)]
            one.calls += 1
        for module, number in _as_stored(sample):
            tensor = manifest.tensors[number]
            if tensor.digest and tensor.digest not in known:
                known.add(tensor.digest)
                found[module].bytes += tensor.bytes
    return list(found.values())


def facts_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the facts of a trace, as (name, fact)."""
    model = manifest.model
    yield "model", f"{model.type} · {model.parameters:,} parameters · {', '.join(model.dtypes) or 'no dtype'}"
    yield "source", model.source
    yield "captured", f"{manifest.created} by qtrace {manifest.qtrace}"
    yield "with", ", ".join(f"{name} {version}" for name, version in _versions(manifest).items()) or "unknown"
    yield "inputs", ", ".join(f"{one.name} {one.spec}" for one in manifest.inputs if one.sample == 0) or "unknown"
    yield "samples", f"{len(manifest.samples)} of {manifest.call}"
    yield "stored", ", ".join(_stored(manifest))


def other_versions(reference: Manifest, candidate: Manifest) -> list[str]:
    """Return which packages two traces were captured under in different versions, as "name old against new"."""
    mine, theirs = _versions(reference), _versions(candidate)
    return [
        f"{name} {mine[name]} against {theirs[name]}"
        for name in mine
        if name in theirs and str(mine[name]) != str(theirs[name])
    ]


def _versions(manifest: Manifest) -> dict[str, Any]:
    # The contents of an environment are not fixed, and nothing is computed from them.
    versions = manifest.environment.get("versions")
    return versions if isinstance(versions, dict) else {}


def _stored(manifest: Manifest) -> Iterator[str]:
    count = sum(tensor.shard is not None for tensor in manifest.tensors)
    yield f"{count:,} tensors, {manifest.stored_bytes:,} bytes"
    if manifest.sketches:
        yield "sketches of at most 1024 elements"
    if manifest.cast is not None:
        yield f"floats as {manifest.cast}"
    if not manifest.arguments:
        yield "no arguments"
    modules = sum(module.alias_of is None for module in manifest.modules)
    if len(manifest.selected) < modules:
        yield f"{len(manifest.selected)} of {modules} modules"


def _as_stored(sample: StoredSample) -> Iterator[tuple[str, int]]:
    """Yield the module and the number of each tensor in the order in which the model had them."""
    # `entry` counts the calls that ended before this call was entered, `order` those that ended before it returned.
    handed = [((call.entry, 0), call.module, list(_arguments(call))) for call in sample.calls]
    returned = [((call.order, 1), call.module, list(_outputs(call))) for call in sample.calls]
    for _, module, numbers in sorted([*handed, *returned], key=lambda moment: moment[0]):
        yield from ((module, number) for number in numbers)


def _outputs(call: StoredCall) -> Iterator[int]:
    yield from (leaf.tensor for leaf in call.outputs.leaves if leaf.tensor is not None)


def _arguments(call: StoredCall) -> Iterator[int]:
    for value in call.arguments.values():
        yield from (leaf.tensor for leaf in value.leaves if leaf.tensor is not None)
