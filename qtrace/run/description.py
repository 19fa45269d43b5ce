"""What a report tells of a run beside its rows: where it ran, and on which inputs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from qtrace.lockstep.pair import spec_of
from qtrace.stats import plain
from qtrace.tree import leaves

_PREVIEW = 8


def environment() -> dict[str, Any]:
    """Return what a number may depend on: versions, platform, threads."""
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
        "versions": versions,
    }


def describe_inputs(samples: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield an entry per leaf of each sample: its name, what it is, its first values."""
    for index, sample in enumerate(samples):
        named = {**{str(i): value for i, value in enumerate(sample.args)}, **sample.kwargs}
        for name, leaf in leaves(named):
            entry = {"sample": index, "name": name, "spec": spec_of(leaf, values=True)}
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                entry["values"] = _preview(leaf)
            yield entry


def _preview(tensor: torch.Tensor) -> str:
    first = plain(tensor.detach()).flatten()[:_PREVIEW].cpu()
    values = first.double() if first.is_floating_point() else first
    return np.array2string(values.numpy(), precision=4, separator=", ").replace("\n", "")
