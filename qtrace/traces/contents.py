"""What a trace holds, module by module, out of the manifest alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qtrace.report.records import TensorSpec
from qtrace.traces.manifest import Manifest, StoredCall, StoredSample


@dataclass(slots=True)
class ModuleContents:
    """The calls of one module over all samples, what the first of them returned, and the bytes of tensors.

    A tensor counts where it comes first: one that is only handed on, or on to the caller, takes no more.
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
    """Yield what a trace is, as (name, fact)."""
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
    # What is told of an environment is free, and nothing is computed from it.
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
    # A call is entered after so many have been left, and is itself the next but so many to be left.
    handed = [((call.entry, 0), call.module, list(_arguments(call))) for call in sample.calls]
    returned = [((call.order, 1), call.module, list(_outputs(call))) for call in sample.calls]
    for _, module, numbers in sorted([*handed, *returned], key=lambda moment: moment[0]):
        yield from ((module, number) for number in numbers)


def _outputs(call: StoredCall) -> Iterator[int]:
    yield from (leaf.tensor for leaf in call.outputs.leaves if leaf.tensor is not None)


def _arguments(call: StoredCall) -> Iterator[int]:
    for value in call.arguments.values():
        yield from (leaf.tensor for leaf in value.leaves if leaf.tensor is not None)
