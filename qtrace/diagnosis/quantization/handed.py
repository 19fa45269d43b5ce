"""What a quantizer is handed: the reference's values, as far as they are what it rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qtrace.diagnosis.quantization.grid import blocks_of, extents
from qtrace.numerics import NoValues, plain
from qtrace.toolkits.quantizer import Reading


def handed(reading: Reading, reference: torch.nn.Module, values: Mapping[str, Tensor]) -> Tensor | None:
    """Return what a quantizer rounds; None where that is not known.

    Of a weight that is the candidate's own or, of one that is kept rounded alone, the reference's; of "input" and
    "output" what `values` has under this name, which is the reference's.
    """
    if reading.of != "weight":
        taken = values.get(reading.of)
        if taken is None:
            return None
        return with_gain(taken.relu() if reading.rectified else taken, reading)
    held = reading.weight if reading.weight is not None else reference._parameters.get(reading.parameter)
    try:
        found = None if held is None else plain(held)
        stored = None if reading.stored is None else plain(reading.stored)
    except NoValues:
        return None
    if found is None or not found.is_floating_point() or not found.numel():
        return None
    if reading.weight is None:
        found = with_gain(found, reading)
    return found if stored is None or is_rounded(found, stored, reading) else None


def with_gain(values: Tensor, reading: Reading) -> Tensor:
    """Return the reference's values as the quantizer is handed them."""
    return values if reading.gain is None else values * reading.gain.detach().to(values)


def without_gain(values: Tensor, reading: Reading) -> Tensor:
    """Undo `with_gain`."""
    return values if reading.gain is None else values / reading.gain.detach().to(values)


def is_rounded(weight: Tensor, stored: Tensor, reading: Reading) -> bool:
    """Return whether a stored weight is this one rounded, and not with a scale folded into it, or in another basis."""
    if weight.shape != stored.shape or reading.scale is None or not reading.scale.numel():
        return False
    off = (weight.to(torch.float32) - stored.to(torch.float32)).abs().median().item()
    return off <= max(reading.scale.max().item(), weight.abs().median().item() / 2)


def without_empty(reading: Reading, values: Tensor | None) -> Reading:
    """Return a reading in which a scale of 0 for zeros alone, as of a padding row, is the least of the others."""
    scale = reading.scale
    if scale is None or values is None or not values.dim() or not bool((scale == 0).any()) or not bool(scale.any()):
        return reading
    blocks = blocks_of(values.shape, scale, reading.axis)
    if blocks is None:
        return reading
    least, most = (extent.reshape(scale.shape).to(scale.device) for extent in extents(values, blocks))
    empty = (scale == 0) & (least == 0) & (most == 0)
    return replace(reading, scale=torch.where(empty, scale[scale != 0].min(), scale))
