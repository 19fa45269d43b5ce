"""NVIDIA's modelopt: TensorQuantizers beside the parameters; they hold the largest value, amax, and no scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import calibrate, chosen, toolkit
from qtrace.toolkits.quantizer import Reading, holders, levels_of, own_weight

TOOLKIT = "modelopt"
MARKS = ("_num_bits",)
_FLOATS = {(4, 3): "float8_e4m3fn", (5, 2): "float8_e5m2"}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers that are switched on. Of several in a row the first rounds the weight or the input."""
    for name, child in holders(module, aligned):
        of = name.removesuffix("_quantizer") if name in _OUTER else "inside"
        if _is_quantizer(child):
            yield from _reading(name, of, child, module)
        elif name in _OUTER:
            for place, one in enumerate(child.children()):
                if _is_quantizer(one):
                    yield from _reading(f"{name}.{place}", "inside" if place else of, one, module)


def _is_quantizer(module: torch.nn.Module) -> bool:
    return hasattr(module, "_num_bits") and hasattr(module, "_axis")


def _reading(name: str, of: str, quantizer: Any, module: torch.nn.Module) -> Iterator[Reading]:
    if getattr(quantizer, "_disabled", False) or not getattr(quantizer, "_if_quant", True):
        return
    dtype = _dtype(quantizer._num_bits, bool(getattr(quantizer, "_unsigned", False)))
    levels = levels_of(dtype)
    if levels is not None and levels[0] < 0 and getattr(quantizer, "_narrow_range", False):
        levels = -levels[1], levels[1]
    weight = own_weight(module) if of == "weight" else None
    group = _group(getattr(quantizer, "_block_sizes", None))
    most = getattr(quantizer, "_amax", None)
    dynamic = bool(getattr(quantizer, "_dynamic", False))
    scale = None if dynamic or levels is None else torch.empty(0) if most is None else most / levels[1]
    if scale is not None and weight is not None and group is not None and scale.numel() * group == weight.numel():
        # A row for each block of each channel.
        scale = scale.reshape(*weight.shape[:-1], -1)
    yield Reading(
        name=name,
        of=of,
        dtype=dtype,
        scale=scale,
        levels=levels,
        symmetric=True,
        axis=_axis(quantizer._axis) if group is None else None,
        weight=weight,
        group=group,
        gain=_gain(of, module),
    )


def _gain(of: str, module: torch.nn.Module) -> torch.Tensor | None:
    """Return the factor by which the input is multiplied before it is rounded, and the weight was divided."""
    scale = getattr(module._modules.get("input_quantizer"), "pre_quant_scale", None)
    if not isinstance(scale, torch.Tensor) or of not in ("input", "weight"):
        return None
    return scale if of == "input" else 1 / scale


_OUTER = ("weight_quantizer", "input_quantizer", "output_quantizer")


def _dtype(bits: Any, unsigned: bool) -> str:
    if isinstance(bits, (tuple, list)):
        return _FLOATS.get(tuple(bits), f"float e{bits[0]}m{bits[1]}")
    return f"{'u' if unsigned else ''}int{bits}"


def _axis(axis: Any) -> int | None:
    if isinstance(axis, (tuple, list)) and len(axis) == 1:
        (axis,) = axis
    return axis if isinstance(axis, int) else None


def _group(sizes: Any) -> int | None:
    """Return the block size along the last axis, if values are quantized in blocks."""
    size = sizes.get(-1) if isinstance(sizes, dict) else None
    return size if isinstance(size, int) else None


def wrap(reference: nn.Module, samples: Sequence[Sample], config: str = "INT8_DEFAULT_CFG") -> nn.Module:
    """Return `reference` with modelopt's quantizers in it; `config` is one of its configurations by name.

    Raises:
        SourceError: nvidia-modelopt is missing.
        UsageError: no such configuration.
    """
    with toolkit("modelopt", "modelopt", "nvidia-modelopt"):
        import modelopt.torch.quantization as mtq

        chosen("modelopt", "config", config, [name for name in dir(mtq) if name.endswith("_CFG")])
        quantized: nn.Module = mtq.quantize(
            reference, getattr(mtq, config), forward_loop=lambda model: calibrate(model, samples)
        )
    _free_attention(quantized)
    return quantized


def _free_attention(model: nn.Module) -> None:
    """Restore the original class of an attention module if none of its quantizers is on.

    While modelopt's attention runs, it replaces a function of transformers, which would change the reference as well.
    """
    for module in model.modules():
        quantizers = [child for name, child in module.named_children() if name.endswith("_bmm_quantizer")]
        if quantizers and not any(getattr(quantizer, "is_enabled", True) for quantizer in quantizers):
            cast("Any", module).export()
