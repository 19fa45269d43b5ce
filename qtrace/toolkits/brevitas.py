"""AMD's brevitas: quantized layers in place of torch's own; proxies hold scale, zero point and bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import calibrate, chosen, toolkit
from qtrace.toolkits.quantizer import Reading, channel_axis, integer_name, own_weight

TOOLKIT = "brevitas"
_OF = {"input_quant": "input", "weight_quant": "weight", "act_quant": "output", "output_quant": "output"}
MARKS = tuple(_OF)


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers that are switched on. A bias in 32 bits is skipped."""
    for name, of in _OF.items():
        proxy: Any = module._modules.get(name)
        if getattr(proxy, "is_quant_enabled", False) and hasattr(proxy, "bit_width"):
            with torch.no_grad():
                yield _reading(name, of, proxy, own_weight(module) if of == "weight" else None)


def _reading(name: str, of: str, proxy: Any, weight: torch.Tensor | None) -> Reading:
    dtype, levels = _dtype(proxy)
    zero = None
    try:
        scale = proxy.scale()
        zero = proxy.zero_point()
    except RuntimeError:
        # The scale is chosen at each call.
        scale = None
    size = getattr(proxy, "group_size", None) if getattr(proxy, "is_groupwise", False) else None
    return Reading(
        name=name,
        of=of,
        dtype=dtype,
        scale=None if scale is None else scale.detach(),
        zero_point=None if zero is None else zero.detach(),
        levels=levels,
        symmetric=None if zero is None else not bool(zero.any()),
        axis=None if scale is None or size is not None else channel_axis(scale),
        group=size if isinstance(size, int) else None,
        weight=weight,
    )


def _dtype(proxy: Any) -> tuple[str, tuple[float, float] | None]:
    if hasattr(proxy, "exponent_bit_width"):
        exponent, mantissa = int(proxy.exponent_bit_width()), int(proxy.mantissa_bit_width())
        return f"float{1 + exponent + mantissa}_e{exponent}m{mantissa}", None
    bits, signed = int(proxy.bit_width()), bool(getattr(proxy, "is_signed", True))
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if getattr(proxy, "is_narrow_range", False):
        low, high = (low + 1, high) if signed else (low, high - 1)
    return integer_name(low, high), (low, high)


MODES = ("layerwise", "fx")


def wrap(reference: nn.Module, samples: Sequence[Sample], mode: str = "layerwise") -> nn.Module:
    """Return `reference` in brevitas' layers: one by one (`layerwise`), or along the graph that torch.fx finds (`fx`).

    Raises:
        SourceError: brevitas is missing.
        UsageError: no such mode.
    """
    chosen("brevitas", "mode", mode, MODES)
    with toolkit("brevitas", "brevitas"):
        from brevitas.graph.calibrate import calibration_mode
        from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize, quantize

        if mode == "layerwise":
            quantized: nn.Module = layerwise_quantize(reference)
        else:
            quantized = quantize(preprocess_for_quantize(reference))
        with torch.no_grad(), calibration_mode(quantized):
            calibrate(quantized, samples)
    return quantized.train(reference.training)
