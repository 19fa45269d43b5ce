"""Compares sketches: with each other, or with a whole tensor, of which the same elements are taken."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from qtrace.engine.pair import Pair, PairComparer, spec_of
from qtrace.numerics import NoValues
from qtrace.report.records import Status, TensorSpec
from qtrace.traces.sketch import Sketch, sketch


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
