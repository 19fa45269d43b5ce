"""AMD's quark: scaled fake quantizers beside the parameters, each with its scale, levels and scheme."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import first_sample, toolkit
from qtrace.toolkits.quantizer import Reading, levels_of, own_weight

TOOLKIT = "quark"
_OF = {"_weight_quantizer": "weight", "_input_quantizer": "input", "_output_quantizer": "output"}
MARKS = tuple(_OF)
_FLOATS = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2", "fp4": "float4_e2m1"}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers that are switched on. A bias is skipped, and so is a cast to another float."""
    for name, of in _OF.items():
        quantizer: Any = module._modules.get(name)
        scaled = hasattr(quantizer, "quant_spec") and hasattr(quantizer, "quant_min")
        if scaled and getattr(quantizer, "fake_quant_enabled", True):
            yield _reading(name, of, quantizer, own_weight(module) if of == "weight" else None)


def _reading(name: str, of: str, quantizer: Any, weight: torch.Tensor | None) -> Reading:
    told = str(getattr(quantizer.dtype, "value", quantizer.dtype))
    dtype = _FLOATS.get(told, told)
    low, high = quantizer.quant_min, quantizer.quant_max
    known = isinstance(low, (int, float)) and isinstance(high, (int, float))
    scheme = str(getattr(quantizer, "qscheme_str_name", None))
    dynamic = bool(getattr(quantizer, "is_dynamic", False))
    size, axis = getattr(quantizer, "group_size", None), getattr(quantizer, "ch_axis", None)
    scale, zero = quantizer._buffers.get("scale"), quantizer._buffers.get("zero_point")
    return Reading(
        name=name.strip("_"),
        of=of,
        dtype=dtype,
        scale=None if dynamic else torch.empty(0) if scale is None else scale.detach(),
        zero_point=None if dynamic or zero is None else zero.detach(),
        levels=(float(low), float(high)) if known and "int" in dtype else levels_of(dtype),
        symmetric=getattr(quantizer.quant_spec, "symmetric", None),
        group=size if scheme == "per_group" and isinstance(size, int) else None,
        axis=axis if scheme == "per_channel" and isinstance(axis, int) else None,
        by_token=dynamic and scheme == "per_channel",
        weight=weight if not getattr(quantizer, "frozen_params", False) else None,
        stored=weight if getattr(quantizer, "frozen_params", False) else None,
        observed=None if dynamic else _seen(getattr(quantizer, "observer", None)),
    )


def _seen(observer: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    low, high = getattr(observer, "min_val", None), getattr(observer, "max_val", None)
    return (low, high) if isinstance(low, torch.Tensor) and isinstance(high, torch.Tensor) else None


def wrap(reference: nn.Module, samples: Sequence[Sample], freeze: bool = False) -> nn.Module:
    """Return `reference` in quark's layers; with `freeze` the rounded weights take the place of the float ones.

    Raises:
        SourceError: amd-quark is missing.
        UsageError: there is no sample.
    """
    first_sample("quark", samples)
    with toolkit("quark", "quark", "amd-quark"):
        from quark.torch import ModelQuantizer
        from quark.torch.quantization import Int8PerTensorSpec, QConfig, QLayerConfig

        spec = Int8PerTensorSpec(
            observer_method="min_max", symmetric=True, scale_type="float", round_method="half_even", is_dynamic=False
        ).to_quantization_spec()
        quantizer = ModelQuantizer(QConfig(global_quant_config=QLayerConfig(weight=spec, input_tensors=spec)))
        calls: Any = [dict(sample.kwargs) if sample.kwargs else sample.args[0] for sample in samples]
        loader: Any = torch.utils.data.DataLoader(calls, batch_size=None)
        quantized: nn.Module = quantizer.quantize_model(reference, loader)
        if freeze:
            quantized = ModelQuantizer.freeze(quantized)
    return quantized.train(reference.training)
