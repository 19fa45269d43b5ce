"""What a report tells of a run beside its rows: where it ran, and on which inputs."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from qtrace.engine.pair import spec_of
from qtrace.numerics import NoValues, plain
from qtrace.tree import leaves

_PREVIEW = 8
_DIGITS = 16


def environment() -> dict[str, Any]:
    """Return what a number may depend on: versions, platform, threads, the seed of torch's random numbers."""
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
    """Yield an entry per leaf of each sample: its name, what it is, its first values, a digest of all of them."""
    for index, sample in enumerate(samples):
        named = {**{str(i): value for i, value in enumerate(sample.args)}, **sample.kwargs}
        for name, leaf in leaves(named):
            entry = {"sample": index, "name": name, "spec": spec_of(leaf, values=True), "digest": _digest(leaf)}
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                entry["values"] = _preview(leaf)
            yield entry


def _digest(leaf: Any) -> str:
    """Return a digest of a value's type, shape and elements; without elements to be read, of the first two."""
    if not isinstance(leaf, torch.Tensor):
        said = repr(leaf)
        # An object without a text of its own says where it lies in memory, which is another place in every run.
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
