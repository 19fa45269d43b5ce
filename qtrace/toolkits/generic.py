"""Any other toolkit: a scale with a zero point beside it, under any usual name, on a module or a child of its own.

`scale`/`zero_point` (or `zp`) is the output's; with a prefix (`weight_scale`) that of the tensor that the prefix names.
A scale by itself is no quantizer: norms and attention have one, too. Nor is an attribute under a private name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from qtrace.toolkits.quantizer import (
    Reading,
    as_tensor,
    channel_axis,
    dtype_name,
    holders,
    integer_name,
    levels_of,
    own_weight,
)

TOOLKIT = "unknown"
_SCALE = re.compile(r"(?:(?P<of>[a-z]\w*?)_)?scale")
_OF = {"weight": "weight", "input": "input", "output": "output", "in": "input", "out": "output", "": "output"}
# A quantizer that is switched off rounds nothing.
_SWITCHES = ("enabled", "fake_quant_enabled")


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield each scale that has a zero point beside it."""
    inner = ((name, child) for name, child in holders(module, aligned) if not child._modules)
    for place, holder in (("", module), *inner):
        if not all(bool(getattr(holder, flag, True)) for flag in _SWITCHES):
            continue
        held: dict[str, Any] = {**vars(holder), **holder._parameters, **holder._buffers}
        for name, value in held.items():
            match, scale = _SCALE.fullmatch(name), as_tensor(value)
            if match is None or scale is None:
                continue
            zero = next((held[key] for key in _zero_names(name) if key in held), None)
            if zero is not None:
                yield _reading(module, place, match["of"] or "", holder, scale, as_tensor(zero))


def _zero_names(scale: str) -> tuple[str, ...]:
    return scale.replace("scale", "zero_point"), scale.replace("scale", "zp")


def _reading(
    module: torch.nn.Module,
    place: str,
    prefix: str,
    holder: torch.nn.Module,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
) -> Reading:
    name = prefix or place or "output"
    word = name.removesuffix("_quantizer").removesuffix("_fake_quant")
    dtype, levels = _dtype(holder)
    return Reading(
        name=name,
        of=_OF.get(word, "inside"),
        dtype=dtype,
        scale=scale,
        zero_point=zero,
        levels=levels,
        symmetric=None if zero is None else not bool(zero.any()),
        axis=_axis(holder, scale),
        parameter=word,
        weight=own_weight(module, word),
    )


def _dtype(holder: torch.nn.Module) -> tuple[str, tuple[float, float] | None]:
    """Return the dtype and its levels: from `quant_min` and `quant_max`, or from `dtype`."""
    low, high = getattr(holder, "quant_min", None), getattr(holder, "quant_max", None)
    name = dtype_name(getattr(holder, "dtype", None) or "?")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        known = levels_of(name) is not None
        return name if known else integer_name(low, high), (float(low), float(high))
    return name, levels_of(name)


def _axis(holder: torch.nn.Module, scale: torch.Tensor) -> int | None:
    for name in ("ch_axis", "channel_axis", "axis"):
        value = getattr(holder, name, None)
        if isinstance(value, int) and scale.numel() > 1:
            return value
    return channel_axis(scale)
