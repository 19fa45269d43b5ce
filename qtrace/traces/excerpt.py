"""A tensor in a few elements: enough to see that two differ, and about how much."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from qtrace.engine.pair import Pair, PairComparer, spec_of
from qtrace.numerics import NoValues, Summary
from qtrace.numerics.dense import plain
from qtrace.report.records import Status, TensorSpec

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


class SketchComparer(PairComparer):
    """Compares leaves by their sketches; what the whole tensors are stands in the specs.

    The numbers are of the sketches' elements: max and PEIR are lower bounds, the others estimates. Relations are not
    sought, and tensors of different shapes are not compared.
    """

    def compare(self, reference: Any, candidate: Any, *, brief: bool = False) -> Pair | None:
        """Return the comparison, or None where two plain values are equal."""
        if not (isinstance(reference, torch.Tensor) and isinstance(candidate, torch.Tensor)):
            return super().compare(reference, candidate, brief=brief)
        specs = _spec(reference), _spec(candidate)
        if specs[0].shape != specs[1].shape:
            return Pair(*specs, status=Status.SHAPE_MISMATCH)
        try:
            pair = super().compare(_sketched(reference), _sketched(candidate), brief=brief)
        except NoValues:
            return Pair(*specs, status=Status.STRUCTURE_MISMATCH)
        return None if pair is None else dataclasses.replace(pair, reference=specs[0], candidate=specs[1])

    def is_explicable(self, pair: Pair, reference: Any, candidate: Any) -> bool:
        """Return False: a relation of a few elements says nothing of the rest."""
        return False


def _spec(tensor: torch.Tensor) -> TensorSpec:
    spec = tensor.spec if isinstance(tensor, Sketch) else spec_of(tensor)
    assert spec is not None
    return spec


def _sketched(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor) if isinstance(tensor, Sketch) else sketch(tensor)
