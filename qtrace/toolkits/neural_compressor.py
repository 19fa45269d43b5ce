"""Intel's neural-compressor: weights rounded to nearest in groups; the levels of nf4 and fp4 are in a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import calibrate, toolkit
from qtrace.toolkits.quantizer import Reading, integer_name

TOOLKIT = "neural-compressor"
MARKS = ("qweight",)


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizer of a packed weight."""
    scales, bits = module._buffers.get("scales"), getattr(module, "bits", None)
    if scales is None or not isinstance(bits, int) or "qweight" not in module._buffers:
        return
    layer: Any = module
    # One of two layouts has all tensors with their axes exchanged, levels from 0, and zero points less by 1.
    turned = bool(getattr(module, "use_optimum_format", False))
    count = scales.T.shape if turned else scales.shape
    table = getattr(module, "int2float_mapping", None)
    packed = module._buffers.get("qzeros")
    levels = (0.0, 2.0**bits - 1) if packed is not None else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    codes = None
    if isinstance(table, dict):
        codes = torch.tensor(sorted({float(value) for value in table.values()}))
        levels = codes.min().item(), codes.max().item()
    zero = None if packed is None or codes is not None else _zero_points(packed, layer, turned)
    stored = vars(module).get("weight")
    size = int(layer.group_size)
    yield Reading(
        name="weight",
        of="weight",
        dtype=str(layer.dtype) if codes is not None else integer_name(*levels),
        scale=(scales.T if turned else scales).detach().to(torch.float32),
        zero_point=zero,
        levels=levels,
        symmetric=None if zero is None else bool((zero == 2 ** (bits - 1)).all()),
        group=size if count[1] > 1 else None,
        axis=0 if count[1] == 1 else None,
        codes=codes,
        # The first call unpacks the weight.
        stored=stored.detach() if isinstance(stored, torch.Tensor) and stored.is_floating_point() else None,
    )


def _zero_points(packed: torch.Tensor, layer: Any, turned: bool) -> torch.Tensor:
    """Return the zero point of each output and group; several share an element of `packed`, along its last axis."""
    bits, groups = int(layer.bits), math.ceil(layer.in_features / layer.group_size)
    # The last axis is that of outputs in the layout with exchanged axes, and that of groups in the other.
    shifts = torch.arange(0, packed.element_size() * 8, bits, device=packed.device)[: int(layer.n_pack)]
    levels = (packed.to(torch.int64)[..., None] >> shifts) & (2**bits - 1)
    found: torch.Tensor = levels.flatten(-2)
    if turned:
        found = (found[:groups].T + 1) % 2**bits
    return found[: layer.out_features, :groups].to(torch.float32)


def wrap(reference: nn.Module, samples: Sequence[Sample], bits: int = 8, group_size: int = -1) -> nn.Module:
    """Return `reference` with the weights of its linear layers rounded to `bits`.

    `group_size` inputs share a scale; with -1 all inputs of a channel do.

    Raises:
        SourceError: neural-compressor is missing.
    """
    with toolkit("neural_compressor", "neural_compressor", "neural-compressor[pt]"):
        from neural_compressor.torch.quantization import RTNConfig, convert, prepare

        prepared = prepare(reference, RTNConfig(bits=bits, group_size=group_size))
        quantized: nn.Module = convert(prepared)
        # A layer unpacks its weight, and exchanges its bias, when it is first called.
        calibrate(quantized, samples[:1])
    return quantized.train(reference.training)
