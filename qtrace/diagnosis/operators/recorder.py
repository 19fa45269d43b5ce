"""Records every operator of one call, below autograd: its inputs, its results, and the line of code that ran it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qtrace.diagnosis.operators.code import OwnCode
from qtrace.diagnosis.operators.graph import Kind, Recorded, Recording, Value, Values, place
from qtrace.diagnosis.operators.sketch import Sketch, sketch
from qtrace.engine.events import Bound
from qtrace.engine.pair import spec_of
from qtrace.tree import frozen, join, tensors

# These operators use only the shape and dtype of a tensor.
_LIKE = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_")
# The results of these operators have no values yet.
_EMPTY = "empty"
# These operators return their input as another object.
_SILENT = ("aten.detach", "aten.alias", "aten.lift_fresh")
# A parameter larger than this is not sketched.
_MOST_OUTSIDE = 1 << 22
_MOST_SETTINGS = 60


class Recorder(TorchDispatchMode):
    """Records what runs between `begin` and `end`.

    Args:
        standing: the examined modules, a wrapper and the modules inside it.
        names: the names of parameters and buffers, by where they lie in memory.
        keeps: the operators whose tensors are copied into `kept`, by value; then nothing is sketched.
        most: the number of operators after which a call is not recorded any more; None for no limit.

    `is_cut_short` says that there were more.
    """

    # torch asks for this before it dispatches operators that take functions, such as `cond`.
    supports_higher_order_operators = True

    def __init__(
        self,
        standing: Collection[torch.nn.Module],
        names: Mapping[Any, str],
        keeps: Collection[int] = (),
        most: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[int, torch.Tensor] = {}
        self.arguments = Bound({}, (), frozenset())
        self.returned: dict[str, Any] = {}
        self.recording: Recording | None = None
        self.is_cut_short = False
        self._code = OwnCode(standing)
        self._names = names
        self._keeps = keeps
        self._most = most
        self._values = Values()
        self._operators: list[Recorded] = []

    def begin(self, arguments: Bound) -> None:
        """Note the arguments, copied, and record from here on."""
        for name, value in arguments.values.items():
            for path, tensor in tensors(value):
                if self._values.of(tensor) is None:
                    self._values.given(tensor, Kind.ARGUMENT, join(name, path), self._sketch(tensor))
        copies = {name: frozen(value) for name, value in arguments.values.items()}
        self.arguments = Bound(copies, arguments.positional, arguments.passed)
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self, value: Any) -> None:
        """Stop recording, and note the output, copied."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.returned = frozen(value)
        outputs = {path: self._input(tensor).index for path, tensor in tensors(value)}
        self.recording = Recording(self._operators, self._values.all, outputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and record it."""
        kwargs = kwargs or {}
        if self._most is not None and len(self._operators) >= self._most:
            self.is_cut_short = True
            return func(*args, **kwargs)
        name = str(func)
        takes = () if any(like in name for like in _LIKE) else _flat((args, kwargs))
        inputs = [self._input(tensor) for tensor in takes]
        held = {place(tensor) for tensor in _flat((args, kwargs))}
        # The inputs are read before the operator may write into them.
        for value, tensor in zip(inputs, takes, strict=True):
            self._keep(value, tensor, len(self._operators))
        result = func(*args, **kwargs)
        if name.startswith(_SILENT) and not self._makes(result, held):
            return result
        made, written = _flat(result), _written(func, args, kwargs)
        changed = [tensor for tensor in written if not any(tensor is one for one in made)]
        index = len(self._operators)
        outputs = []
        is_written = {id(tensor) for tensor in written}
        for tensor in (*made, *changed):
            writes = id(tensor) in is_written
            fresh = not writes and place(tensor) not in held
            found = None if _EMPTY in name else self._sketch(tensor)
            outputs.append(self._values.made(tensor, index, found, fresh=fresh, writes=writes))
            self._keep(outputs[-1], tensor, index)
        self._operators.append(
            Recorded(
                index,
                name,
                _settings(func, args, kwargs),
                tuple(spec for tensor in (*made, *changed) if (spec := spec_of(tensor)) is not None),
                tuple(dict.fromkeys(value.index for value in inputs)),
                tuple(value.index for value in outputs),
                self._code.origin(),
                views=bool(made) and not written and all(place(tensor) in held for tensor in made),
            )
        )
        return result

    def _input(self, tensor: torch.Tensor) -> Value:
        known = self._values.of(tensor)
        if known is not None:
            return known if self._values.holds(known, tensor) else self._seen(known, tensor)
        found = self._sketch(tensor) if tensor.numel() <= _MOST_OUTSIDE else None
        return self._values.given(tensor, Kind.OUTSIDE, self._names.get(place(tensor), ""), found)

    def _seen(self, known: Value, tensor: torch.Tensor) -> Value:
        return self._values.seen(tensor, known.operator, self._sketch(tensor))

    def _sketch(self, tensor: torch.Tensor) -> Sketch | None:
        return None if self._keeps else sketch(tensor)

    def _keep(self, value: Value, tensor: torch.Tensor, operator: int) -> None:
        if operator in self._keeps and value.index not in self.kept:
            self.kept[value.index] = tensor.detach().clone()

    def _makes(self, result: Any, held: set[Any]) -> bool:
        """Return whether a tensor of the result lies in memory that no input lies in."""
        return any(place(tensor) not in held for tensor in _flat(result))


def _flat(value: Any) -> list[torch.Tensor]:
    """Return the tensors of an operator's arguments or result, which are single or in lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _flat(item)] if isinstance(value, (list, tuple)) else []


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that an operator writes into, as its schema says."""
    found = []
    for position, argument in enumerate(_parameters(func)):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            found += _flat(given)
    return found


def _parameters(func: Any) -> Sequence[Any]:
    """Return an operator's parameters; an operator that takes functions, such as `cond`, has no schema with them."""
    schema = getattr(func, "_schema", None)
    return () if schema is None else schema.arguments


def _settings(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the plain values among an operator's arguments, with their names; tensors are left out."""
    names = [argument.name for argument in _parameters(func)]
    given: list[tuple[str, Any]] = [*zip(names, args, strict=False), *kwargs.items()]
    said = ", ".join(f"{name}={value}" for name, value in given if not _flat(value) and value is not None)
    return said if len(said) <= _MOST_SETTINGS else said[: _MOST_SETTINGS - 1] + "…"
