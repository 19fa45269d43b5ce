"""Leaves that are no tensors as JSON types: either exact values, or their text."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch


class Other:
    """The text of a plain value whose type a trace does not know; two of the same text are equal."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return repr(other) == self._text

    __hash__ = None  # type: ignore[assignment]


def encode(value: Any) -> Any:
    """Return a plain value as JSON types; where JSON lacks the type, a mapping of one key names it.

    >>> encode(3), encode(float("inf")), encode(torch.float16), encode((1, None))
    (3, {'float': 'inf'}, {'dtype': 'float16'}, {'tuple': [1, None]})
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, str):
        return str.__str__(value)
    for name, kind, write in _WRITTEN:
        if isinstance(value, kind):
            return {name: write(value)}
    return {"other": repr(value)[:200]}


def decode(plain: Any) -> Any:
    """Return the value that `encode` was given.

    >>> decode(encode((1.5, float("-inf"), torch.float16, "x")))
    (1.5, -inf, torch.float16, 'x')
    """
    if isinstance(plain, dict) and len(plain) == 1:
        ((name, held),) = plain.items()
        try:
            return _READ[name](held)
        except (KeyError, ValueError, TypeError, RuntimeError, SyntaxError):
            # For example a device of another version of torch.
            return Other(str(held))
    return plain


def _dtype(name: Any) -> Any:
    found = getattr(torch, str(name), None)
    return found if isinstance(found, torch.dtype) else Other(f"torch.{name}")


_WRITTEN: tuple[tuple[str, type, Callable[[Any], Any]], ...] = (
    ("complex", complex, repr),
    ("bytes", bytes, repr),
    ("dtype", torch.dtype, lambda value: str(value).removeprefix("torch.")),
    ("device", torch.device, str),
)
_READ: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda held: tuple(map(decode, held)),
    "size": torch.Size,
    "float": float,
    "complex": complex,
    "bytes": ast.literal_eval,
    "dtype": _dtype,
    "device": torch.device,
}
