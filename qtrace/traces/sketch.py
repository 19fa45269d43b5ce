"""A tensor in a few elements: enough to see that two differ, and about how much."""

from __future__ import annotations

from typing import Any

import torch

from qtrace.numerics import Summary
from qtrace.numerics.dense import plain
from qtrace.report.records import TensorSpec

LENGTH = 1024
# Of these torch cannot tell the smallest.
_WIDENED = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
    torch.uint64: torch.float64,
}


class Sketch(torch.Tensor):
    """The sketch of a tensor; `spec` and `summary` are the tensor's own. Nobody writes to it, so a copy is itself."""

    spec: TensorSpec
    summary: Summary

    def detach(self) -> Any:
        """Return the sketch itself."""
        return self

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """Return the sketch itself."""
        return self


def sketch(tensor: torch.Tensor) -> torch.Tensor:
    """Return up to 1024 elements as a 1-D tensor; the same ones of every tensor of one shape.

    Of a tensor with more they are 1022 evenly spaced ones in row-major order, then the smallest and the largest of all,
    which are NaN where any element is. So of two sketches the interval of the PEIR is that of the whole tensors, and
    max|r - c| is at most that of the whole ones.

    Raises `NoValues` as `qtrace.numerics.dense` does.
    """
    flat = plain(tensor.as_subclass(torch.Tensor) if isinstance(tensor, Sketch) else tensor).flatten()
    if flat.dtype in _WIDENED:
        flat = flat.to(_WIDENED[flat.dtype])
    if flat.numel() <= LENGTH:
        return flat
    places = torch.arange(LENGTH - 2, device=flat.device) * (flat.numel() - 1) // (LENGTH - 3)
    return torch.cat((flat[places], torch.stack(torch.aminmax(flat))))


def as_sketch(elements: torch.Tensor, spec: TensorSpec, summary: Summary) -> Sketch:
    """Return elements that `sketch` returned as the sketch of a tensor of this kind, with these statistics."""
    made = elements.as_subclass(Sketch)
    made.spec, made.summary = spec, summary
    return made
