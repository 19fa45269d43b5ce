"""What operators computed of what: the values of one call, each with the operator that made it."""

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
    """One tensor as it was at one moment; what is written into it later is another value.

    `index` counts a side's values in the order in which they came to be. `name` is the argument's or the parameter's.
    One without elements `is_empty`: it can neither agree nor differ.
    """

    index: int
    kind: Kind
    sketch: Sketch | None = None
    operator: int = -1
    name: str = ""
    is_empty: bool = False


@dataclass(slots=True, eq=False)
class Recorded:
    """One operator as it ran. `views` says that its result lies in the memory of what it took."""

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
    """What lies in one piece of memory: each view's value, and which was written last."""

    views: dict[Any, int] = field(default_factory=dict)
    written: int = -1


class Values:
    """The values of one call, found again by where a tensor lies in memory.

    Not by the tensor's identity: autograd hands on views as new objects. Memory that is freed is used again, but by
    an operator that is recorded, and then what was known of it is forgotten.
    """

    def __init__(self) -> None:
        self.all: list[Value] = []
        self._memory: dict[Any, _Memory] = {}

    def of(self, tensor: torch.Tensor) -> Value | None:
        """Return the value that a tensor holds; None where it came from outside and is not known yet.

        A view of what was written into since is the value that was written; see `holds`.
        """
        memory = self._memory.get(place(tensor))
        if memory is None:
            return None
        found = max(memory.views.get(_view(tensor), -1), memory.written)
        return self.all[found] if found >= 0 else None

    def holds(self, value: Value, tensor: torch.Tensor) -> bool:
        """Return whether a value is what lies in this very view, and not only somewhere in its memory."""
        return self._memory[place(tensor)].views.get(_view(tensor)) == value.index

    def seen(self, tensor: torch.Tensor, operator: int, sketch: Sketch | None) -> Value:
        """Note the view of what an operator wrote as a value of its own."""
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
        """Note the result of an operator: in `fresh` memory, as a view of what was there, or by writing into it."""
        value = Value(len(self.all), Kind.OPERATOR, sketch, operator, is_empty=tensor.numel() == 0)
        self.all.append(value)
        key = place(tensor)
        memory = self._memory[key] = _Memory() if fresh else self._memory.get(key, _Memory())
        if writes:
            # Every view of it shows what was written.
            memory.views.clear()
            memory.written = value.index
        memory.views[_view(tensor)] = value.index
        return value


def place(tensor: torch.Tensor) -> Any:
    """Return what tells the memory of a tensor from that of others; the object itself where it has none."""
    address = address_of(tensor)
    return (tensor.device, address) if address else id(tensor)


def _view(tensor: torch.Tensor) -> Any:
    """Return what tells a view from others of the same memory; nothing where a tensor has no strides."""
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
        """Return the values that the operator which made a value took; none for one from outside."""
        made_by = self.values[value].operator
        return self.operators[made_by].inputs if made_by >= 0 else ()
