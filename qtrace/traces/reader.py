"""A stored trace, opened: its manifest, and its tensors on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from qtrace.numerics import Summary
from qtrace.traces.literals import decode
from qtrace.traces.manifest import Manifest, StoredSample, StoredTensor, StoredValue
from qtrace.traces.manifest_file import load
from qtrace.traces.shards import ShardReader
from qtrace.traces.sketch import as_sketch


class Trace:
    """A trace on disk. Opening reads the manifest and looks at each file's header; elements are read on demand.

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
        """Read one tensor of the manifest: a sketch where only that is stored, on the meta device where nothing is."""
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
    """The nested values of one sample, in the order of its events; each tensor is read once and kept while needed.

    What is needed again is kept, up to `most` bytes; beyond that it is read again. One tensor of the trace is one
    object as long as it is kept, so that a pair of them need not be compared twice.
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
        """Return a nested value whose leaves are those that were stored, under the same paths."""
        found = {leaf.path: self._leaf(leaf.tensor, leaf.plain) for leaf in stored.leaves}
        if stored.object is not None:
            held = self._objects.setdefault(stored.object, StoredObject())
            vars(held).clear()
            vars(held).update(found)
            return held
        return found[""] if found.keys() == {""} else found

    def skip(self, values: Iterable[StoredValue]) -> None:
        """Let go of values that nobody asks for."""
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
    """Stands for an object, such as a cache, that held tensors in attributes; `vars` has them by path."""


def _tensors_of(values: Iterable[StoredValue]) -> Iterator[int]:
    for value in values:
        for leaf in value.leaves:
            if leaf.tensor is not None:
                yield leaf.tensor


def _summary(entry: StoredTensor) -> Summary:
    return Summary(entry.spec.min, entry.spec.max, entry.mean, entry.stddev, entry.non_finite or 0)


def without_values(shape: tuple[int, ...], dtype: str | None) -> torch.Tensor:
    """Return a tensor on the meta device; of a dtype that this version of torch does not know it is float32."""
    known = getattr(torch, dtype or "", None)
    return torch.empty(shape, dtype=known if isinstance(known, torch.dtype) else torch.float32, device="meta")
