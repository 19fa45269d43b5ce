"""What a reader finds: one quantizer of one module, still as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

# The largest value that a small float holds; what is larger saturates.
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

    `scale` is None where it is chosen at each call, and has no elements where it should be there and is not.
    `levels` are the least and the greatest level. `observed` are the least and greatest values that calibration saw,
    the one above the other where it saw none. `parameter` is the name of what a weight's quantizer rounds,
    `weight` that weight where it is kept as it was, `stored` the rounded one where it is not. `codes` are the levels
    where they are not equally far apart and no float's either. `by_token` says of a scale that is chosen at each call
    that each token has one, all along the last axis. `rectified` says that a ReLU comes before the quantizer, whose
    module may well answer to that before the ReLU. `gain` is what the reference's values are multiplied by before they
    are rounded, along the last axis, where a candidate moves scales from one factor of a product to the other.
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
        """Return whether it is known that calibration never came by."""
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
    """Return the dtype that has these least and greatest levels, or the next larger one.

    >>> integer_name(-127, 127), integer_name(0, 15)
    ('int8', 'uint4')
    """
    return f"{'int' if low < 0 else 'uint'}{int(high - low).bit_length()}"


def levels_of(dtype: str) -> tuple[float, float] | None:
    """Return the least and the greatest level of a dtype; None where that is not known.

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
    """Return a scale or zero point that is a number, or already a tensor."""
    if value is None or isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, (int, float)) else None


def channel_axis(scale: torch.Tensor) -> int | None:
    """Return the one axis along which scales differ, where they have as many axes as what they are for."""
    long = [axis for axis, size in enumerate(scale.shape) if size > 1]
    return long[0] if scale.dim() > 1 and len(long) == 1 else None


def holders(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield (name, child) of the children that answer to no module of the reference: they belong to this one."""
    yield from ((name, child) for name, child in module.named_children() if child not in aligned)


def own_weight(module: torch.nn.Module, name: str = "weight") -> torch.Tensor | None:
    """Return a weight of floats that a module, or one directly in it, holds, as fake quantizers leave it."""
    for holder in (module, *module.children()):
        weight = holder._parameters.get(name)
        if type(weight) in (torch.Tensor, torch.nn.Parameter) and weight is not None and weight.is_floating_point():
            return weight
    return None
