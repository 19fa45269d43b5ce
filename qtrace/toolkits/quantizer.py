"""Holds the result of a reader: one quantizer of one module, still as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

# The largest value of each small float; a larger one saturates.
_FLOAT_MOST = {
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0,
    "float4_e2m1": 6.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One quantizer as its toolkit holds it; see `qtrace.report.records.Quantizer` for the words.

    `scale` is None if it is chosen at each call, and has no elements if it is missing. `levels` are the least and the
    greatest level. `observed` are the least and greatest values that calibration saw; if it saw none, the first is
    above the second. `parameter` is the name of the parameter that a weight's quantizer rounds, `weight` that
    parameter if it is kept as it was, `stored` the rounded one if not. `codes` are the levels if they are neither
    equally far apart nor a float's. `by_token` says that a scale chosen at each call is one for each token, all along
    the last axis. `rectified` says that a ReLU comes before the quantizer, whose module may well be aligned with the
    one before the ReLU. `gain` is the factor by which the reference's values are multiplied before they are rounded,
    along the last axis, if a candidate moves scales from one factor of a product to the other.
    """

    name: str
    of: str
    dtype: str
    scale: torch.Tensor | None
    zero_point: torch.Tensor | None = None
    levels: tuple[float, float] | None = None
    symmetric: bool | None = None
    axis: int | None = None
    group: int | None = None
    observed: tuple[torch.Tensor, torch.Tensor] | None = None
    parameter: str = "weight"
    weight: torch.Tensor | None = None
    stored: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    by_token: bool = False
    rectified: bool = False
    gain: torch.Tensor | None = None

    @property
    def saw_nothing(self) -> bool:
        """Return whether it is known that calibration never ran this quantizer."""
        if self.observed is None:
            return False
        low, high = self.observed
        return not low.numel() or bool((low > high).all())

    @property
    def is_float(self) -> bool:
        """Return whether the levels are those of a float, which are not equally far apart."""
        return "float" in self.dtype


def dtype_name(dtype: Any) -> str:
    """Return a dtype as reports name it: `torch.quint8` is "uint8"."""
    name = str(dtype).removeprefix("torch.")
    return name[1:] if name.startswith(("qint", "quint")) else name


def integer_name(low: float, high: float) -> str:
    """Return the integer dtype with these least and greatest levels, or the next larger one.

    >>> integer_name(-127, 127), integer_name(0, 15)
    ('int8', 'uint4')
    """
    return f"{'int' if low < 0 else 'uint'}{int(high - low).bit_length()}"


def levels_of(dtype: str) -> tuple[float, float] | None:
    """Return the least and the greatest level of a dtype; None if they are not known.

    >>> levels_of("uint4")
    (0.0, 15.0)
    """
    if dtype in _FLOAT_MOST:
        return -_FLOAT_MOST[dtype], _FLOAT_MOST[dtype]
    sign, _, bits = dtype.partition("int")
    if sign not in ("", "u") or not bits.isdecimal():
        return None
    count = 2.0 ** int(bits)
    return (0.0, count - 1) if sign else (-count / 2, count / 2 - 1)


def as_tensor(value: Any) -> torch.Tensor | None:
    """Return a scale or zero point as a tensor, from a number or a tensor; None for anything else."""
    if value is None or isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, (int, float)) else None


def channel_axis(scale: torch.Tensor) -> int | None:
    """Return the one axis along which scales differ, if they have as many axes as the tensor that they are for."""
    long = [axis for axis, size in enumerate(scale.shape) if size > 1]
    return long[0] if scale.dim() > 1 and len(long) == 1 else None


def holders(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield (name, child) of the children without a partner in the reference: they belong to this module."""
    yield from ((name, child) for name, child in module.named_children() if child not in aligned)


def own_weight(module: torch.nn.Module, name: str = "weight") -> torch.Tensor | None:
    """Return a float weight of a module, or of a module directly in it, as fake quantizers leave it."""
    for holder in (module, *module.children()):
        weight = holder._parameters.get(name)
        if type(weight) in (torch.Tensor, torch.nn.Parameter) and weight is not None and weight.is_floating_point():
            return weight
    return None
