"""What the tests of the fault bench compare with: plain torch, and nothing of qtrace."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested tuples, lists, mappings (a ModelOutput is one) and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value.detach()
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def difference(references: Sequence[torch.Tensor], candidates: Sequence[torch.Tensor]) -> float:
    """Return the largest PEIR of the pairs; infinite for other shapes and where only the candidate is not finite."""
    worst = 0.0
    for reference, candidate in zip(references, candidates, strict=True):
        if reference.shape != candidate.shape:
            return math.inf
        exact, other = reference.double(), candidate.double()
        finite = torch.isfinite(exact)
        if not torch.equal(finite, torch.isfinite(other)):
            return math.inf
        exact, other = exact[finite], other[finite]
        if exact.numel():
            worst = max(worst, float((exact - other).abs().max() / (exact.max() - exact.min()).clamp(min=1e-30)))
    return worst
