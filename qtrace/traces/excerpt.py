"""Sketches of tensors: a few elements, enough to see that two tensors differ, and by about how much."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from qtrace.engine.pair import Channels, Pair, PairComparer, spec_of
from qtrace.numerics import NoValues, Summary
from qtrace.numerics.dense import plain
from qtrace.report.records import Status, TensorSpec

LENGTH = 1024
# torch cannot compute the minimum of these dtypes.
_WIDENED = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
    torch.uint64: torch.float64,
}


class Sketch(torch.Tensor):
    """The sketch of a tensor; `spec` and `summary` are the whole tensor's. Never written to, so a copy is itself."""

    spec: TensorSpec
    summary: Summary

    def detach(self) -> Any:
        """Return the sketch itself."""
        return self

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """Return the sketch itself."""
        return self


def sketch(tensor: torch.Tensor) -> torch.Tensor:
    """Return up to 1024 elements as a 1-D tensor; tensors of one shape give elements of the same places.

    A larger tensor gives 1022 evenly spaced elements in row-major order, then its smallest and its largest element.
    These two are NaN if any element is NaN. So two sketches have the PEIR interval of the whole tensors, and their
    max|r - c| is at most that of the whole tensors.

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
    """Return the elements from `sketch` as the sketch of a tensor with this spec and these statistics."""
    made = elements.as_subclass(Sketch)
    made.spec, made.summary = spec, summary
    return made


class SketchComparer(PairComparer):
    """Compares leaves by their sketches; the specs describe the whole tensors.

    The numbers are computed over the sketches' elements: max and PEIR are lower bounds, the others are estimates. No
    relation is searched for, and tensors of different shapes are not compared.
    """

    def compare(
        self, reference: Any, candidate: Any, *, brief: bool = False, channels: Channels | None = None
    ) -> Pair | None:
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
        """Return False: a relation between a few elements does not prove one between all elements."""
        return False


def _spec(tensor: torch.Tensor) -> TensorSpec:
    spec = tensor.spec if isinstance(tensor, Sketch) else spec_of(tensor)
    assert spec is not None
    return spec


def _sketched(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor) if isinstance(tensor, Sketch) else sketch(tensor)
