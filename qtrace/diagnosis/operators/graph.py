"""Holds the graph of one call: its values, each with the operator that made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from qtrace.diagnosis.operators.code import Origin
from qtrace.diagnosis.operators.sketch import Sketch
from qtrace.engine.model import address_of
from qtrace.report.records import TensorSpec


class Kind(Enum):
    """Where a value comes from: an operator, an argument of the call, or from outside (a parameter, a buffer)."""

    OPERATOR = "operator"
    ARGUMENT = "argument"
    OUTSIDE = "outside"


@dataclass(slots=True, eq=False)
class Value:
    """One tensor as it was at one moment; after a write into it, it is another value.

    `index` counts a side's values in the order in which they were made. `name` is the argument's or the parameter's.
    A value without elements `is_empty`: it can neither agree nor differ.
    """

    index: int
    kind: Kind
    sketch: Sketch | None = None
    operator: int = -1
    name: str = ""
    is_empty: bool = False


@dataclass(slots=True, eq=False)
class Recorded:
    """One operator as it ran. `views` says that its result lies in the memory of an input."""

    index: int
    name: str
    settings: str
    specs: tuple[TensorSpec, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    origin: Origin
    views: bool


@dataclass(slots=True)
class _Memory:
    """The values in one piece of memory: each view's value, and the value that was written last."""

    views: dict[Any, int] = field(default_factory=dict)
    written: int = -1


class Values:
    """The values of one call, found again by where a tensor lies in memory.

    A tensor's identity would not do: autograd passes on views as new objects. Freed memory is used again, but by a
    recorded operator; then the old values of that memory are forgotten.
    """

    def __init__(self) -> None:
        self.all: list[Value] = []
        self._memory: dict[Any, _Memory] = {}

    def of(self, tensor: torch.Tensor) -> Value | None:
        """Return the value that a tensor holds; None if it came from outside and is not known yet.

        For a view of memory that was written into since, it is the value that was written; see `holds`.
        """
        memory = self._memory.get(place(tensor))
        if memory is None:
            return None
        found = max(memory.views.get(_view(tensor), -1), memory.written)
        return self.all[found] if found >= 0 else None

    def holds(self, value: Value, tensor: torch.Tensor) -> bool:
        """Return whether a value lies in this very view, and not only somewhere in its memory."""
        return self._memory[place(tensor)].views.get(_view(tensor)) == value.index

    def seen(self, tensor: torch.Tensor, operator: int, sketch: Sketch | None) -> Value:
        """Note a view of an operator's written result as a value of its own."""
        value = Value(len(self.all), Kind.OPERATOR, sketch, operator)
        self.all.append(value)
        self._memory[place(tensor)].views[_view(tensor)] = value.index
        return value

    def given(self, tensor: torch.Tensor, kind: Kind, name: str, sketch: Sketch | None) -> Value:
        """Note a value from outside."""
        value = Value(len(self.all), kind, sketch, name=name)
        self.all.append(value)
        memory = self._memory.setdefault(place(tensor), _Memory())
        memory.views[_view(tensor)] = value.index
        return value

    def made(self, tensor: torch.Tensor, operator: int, sketch: Sketch | None, *, fresh: bool, writes: bool) -> Value:
        """Note the result of an operator: in `fresh` memory, as a view of known memory, or written into it."""
        value = Value(len(self.all), Kind.OPERATOR, sketch, operator, is_empty=tensor.numel() == 0)
        self.all.append(value)
        key = place(tensor)
        memory = self._memory[key] = _Memory() if fresh else self._memory.get(key, _Memory())
        if writes:
            # Every view of this memory shows the written value.
            memory.views.clear()
            memory.written = value.index
        memory.views[_view(tensor)] = value.index
        return value


def place(tensor: torch.Tensor) -> Any:
    """Return a key that identifies the memory of a tensor; the id of the object if it has none."""
    address = address_of(tensor)
    return (tensor.device, address) if address else id(tensor)


def _view(tensor: torch.Tensor) -> Any:
    """Return a key that identifies a view among those of the same memory; None for a tensor without strides."""
    try:
        return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    except (RuntimeError, NotImplementedError):
        return None


@dataclass(slots=True)
class Recording:
    """One side's call: its operators and values, and the values of what it returned, by output path."""

    operators: list[Recorded]
    values: list[Value]
    outputs: dict[str, int]

    def inputs_of(self, value: int) -> Iterable[int]:
        """Return the inputs of the operator that made a value; none for a value from outside."""
        made_by = self.values[value].operator
        return self.operators[made_by].inputs if made_by >= 0 else ()
