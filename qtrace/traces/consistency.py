"""What a manifest says, held against itself: nothing in it may point outside of it, or claim what does not add up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from qtrace.traces.manifest import WIDTHS, Manifest, StoredModule, StoredSample

_FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
# More elements than any machine counts.
_MOST = 1 << 62


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield what does not hold, each in words with its place; of a manifest as `qtrace capture` writes it, nothing."""
    yield from _shards(manifest)
    yield from _tensors(manifest)
    yield from _modules(manifest.modules)
    known = {module.path for module in manifest.modules}
    for place, sample in enumerate(manifest.samples):
        yield from _calls(f"samples.{place}", sample, known, len(manifest.tensors))


def _shards(manifest: Manifest) -> Iterator[str]:
    for number, shard in enumerate(manifest.shards):
        if not _FILE.fullmatch(shard.file) or not 8 <= shard.header <= shard.bytes:
            yield f"shards.{number}: {shard.file!r} with a header of {shard.header} of {shard.bytes} bytes"


def _tensors(manifest: Manifest) -> Iterator[str]:
    for number, tensor in enumerate(manifest.tensors):
        where = f"tensors.{number}"
        is_complex = (tensor.spec.dtype or "").startswith("complex") and tensor.dtype in ("F32", "F64")
        if not _is_shape(tensor.spec.shape):
            yield f"{where}: {list(tensor.spec.shape or ())} is no shape"
        if tensor.shard is None:
            continue
        if not 0 <= tensor.shard < len(manifest.shards):
            yield f"{where}: there is no shard {tensor.shard}"
            continue
        shard = manifest.shards[tensor.shard]
        size = math.prod(tensor.shape) * WIDTHS.get(tensor.dtype, -1)
        fits = tensor.offset >= 0 and tensor.offset + tensor.bytes <= shard.bytes - shard.header
        if not _is_shape(tensor.shape) or size != tensor.bytes or not fits:
            yield (
                f"{where}: {tensor.dtype} {list(tensor.shape)} in {tensor.bytes} bytes at {tensor.offset} "
                f"does not fit into {shard.file} of {shard.bytes} bytes"
            )
        elif is_complex and not manifest.sketches and tensor.shape[-1:] != (2,):
            yield f"{where}: {list(tensor.shape)} holds no pairs of a real and an imaginary part"


def _modules(modules: tuple[StoredModule, ...]) -> Iterator[str]:
    known: set[str] = set()
    # What stands in a second place is complete, or a module would be inside of itself.
    complete: set[str] = set()
    for number, module in enumerate(modules):
        where = f"modules.{number}"
        if module.path in known:
            yield f"{where}: {module.path!r} was told before"
        if not complete.isdisjoint(_around(module.path)):
            yield f"{where}: {module.path!r} comes after the module around it was put in another place"
        known.add(module.path)
        if module.alias_of is not None:
            if module.alias_of not in known or module.alias_of in _around(module.path):
                yield f"{where}: there is no module {module.alias_of!r} before it"
            complete.add(module.alias_of)
        for name, held in {**module.parameters, **module.buffers}.items():
            if held is not None and not _is_shape(held.shape):
                yield f"{where}: {name} has {list(held.shape or ())}, which is no shape"


def _calls(place: str, sample: StoredSample, known: set[str], tensors: int) -> Iterator[str]:
    under_way: list[int] = []
    told: set[tuple[str, int]] = set()
    for number, call in enumerate(sample.calls):
        where = f"{place}.calls.{number}"
        if call.module not in known:
            yield f"{where}: there is no module {call.module!r}"
        if (call.module, call.call) in told:
            yield f"{where}: call {call.call} of {call.module!r} was told before"
        told.add((call.module, call.call))
        while under_way and under_way[-1] != call.parent:
            under_way.pop()
        if call.parent is not None and not under_way:
            yield f"{where}: its parent is call {call.parent}, which is not under way"
        under_way.append(number)
    values = [(number, value) for number, call in enumerate(sample.calls) for value in call.arguments.values()]
    values += [(number, call.outputs) for number, call in enumerate(sample.calls)]
    placed = [(f"{place}.calls.{number}", value) for number, value in values]
    if sample.returned is not None:
        placed.append((f"{place}.returned", sample.returned))
    for where, value in placed:
        if any(leaf.tensor is not None and not 0 <= leaf.tensor < tensors for leaf in value.leaves):
            yield f"{where}: it names a tensor that is not there"


def _around(path: str) -> Iterator[str]:
    """Yield a path and those of all modules around it, from the inside out."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _is_shape(shape: tuple[int, ...] | None) -> bool:
    """Return whether there may be a tensor of this shape; an empty one may have no other size beyond a machine's."""
    return all(0 <= size < _MOST for size in shape or ()) and math.prod(shape or ()) < _MOST
