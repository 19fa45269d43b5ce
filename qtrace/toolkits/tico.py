"""Samsung's TICO: the model in its quantization wrappers, whose observers fake-quantize in the mode QUANT."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample, named_arguments
from qtrace.errors import SourceError
from qtrace.toolkits.calibration import calibrate, chosen
from qtrace.toolkits.quantizer import Reading, dtype_name, holders, own_weight

TOOLKIT = "tico"
MARKS = ("_mode",)
_OF = {"weight": "weight", "act_in": "input", "act_out": "output"}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the observers of a wrapper that quantizes."""
    if getattr(getattr(module, "_mode", None), "name", "") != "QUANT":
        return
    for _, child in holders(module, aligned):
        dtype: Any = getattr(child, "dtype", None)
        scale, low, high = (child._buffers.get(key) for key in ("_cached_scale", "min_val", "max_val"))
        # The identity observer has the scale 1 and rounds nothing.
        identity = type(child).__name__ == "IdentityObserver"
        if scale is None or not hasattr(dtype, "qmin") or identity or not getattr(child, "fake_quant_enabled", True):
            continue
        scheme = getattr(child, "qscheme", None)
        loaded = getattr(child, "_qparams_locked", False)
        name = str(getattr(child, "name", ""))
        yield Reading(
            name=name,
            of=_OF.get(name, "inside"),
            dtype=dtype_name(dtype),
            scale=scale,
            zero_point=getattr(child, "_cached_zp", None),
            levels=(float(dtype.qmin), float(dtype.qmax)),
            symmetric=scheme.is_symmetric() if scheme is not None else None,
            axis=getattr(child, "channel_axis", None),
            weight=own_weight(module) if name == "weight" else None,
            observed=None if loaded or low is None or high is None else (low, high),
        )


# Bits and sign, as tico's own tracing script offers them.
DTYPES = {"uint4": (4, False), "int4": (4, True), "int8": (8, True), "uint8": (8, False), "int16": (16, True)}


def wrap(
    reference: nn.Module,
    samples: Sequence[Sample],
    quantize: bool = False,
    dtype: str = "uint8",
    weight_dtype: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return `reference` in tico's wrappers.

    With `quantize` off nothing is quantized: the result must compute what the reference does. With it on, the
    wrapped model is calibrated on the samples, then activations are fake-quantized to `dtype` and weights to
    `weight_dtype` (the same, when not given). `model_args` is tico's description of the model; for a Qwen3-VL
    missing entries are taken from the samples. The result shares its weights with `reference`.

    Raises:
        SourceError: tico is missing, or does not work with the installed transformers.
        UsageError: no such dtype.
    """
    kinds = [chosen("tico", "dtype", given, tuple(DTYPES)) for given in (dtype, weight_dtype or dtype)]
    activation, weight = (DTYPES[kind] for kind in kinds)
    # tico reports its progress by print; stdout is for results.
    with redirect_stdout(sys.stderr):
        try:
            from tico.quantization import convert, prepare
            from tico.quantization.config.ptq import PTQConfig
            from tico.quantization.config.specs import affine
            from tico.quantization.wrapq.dtypes import DType

            config = PTQConfig(
                activation=affine(DType(*activation)),
                weight=affine(DType(*weight)),
                model_args=_model_args(reference, samples, model_args or {}),
            )
            wrapped: nn.Module = prepare(reference, config, inplace=True)
        except ImportError as error:
            raise SourceError(_import_problem(error)) from error
        wrapped.train(reference.training)
        if quantize:
            calibrate(wrapped, samples)
            wrapped = convert(wrapped, inplace=True)
    return wrapped


def _model_args(reference: nn.Module, samples: Sequence[Sample], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return tico's `model_args`: for a Qwen3-VL with the position and size of the image, else as given."""
    config = getattr(reference, "config", None)
    if getattr(config, "model_type", None) != "qwen3_vl" or config is None:
        return dict(given)
    vision: dict[str, Any] = {
        "visual_start_idx": 0,
        "spatial_merge_size": config.vision_config.spatial_merge_size,
    }
    for sample in samples:
        arguments = named_arguments(reference, sample)
        grid, tokens = arguments.get("image_grid_thw"), arguments.get("input_ids")
        if grid is not None and tokens is not None and len(grid):
            vision["grid_thw"] = grid[0].tolist()
            places = (tokens[0] == config.image_token_id).nonzero()
            vision["visual_start_idx"] = int(places[0]) if len(places) else 0
            break
    vision |= given.get("vision", {})
    if "grid_thw" in vision:
        vision["grid_thw"] = tuple(vision["grid_thw"])
    return {**given, "vision": vision}


def _import_problem(error: ImportError) -> str:
    if find_spec("tico") is None:
        return "the wrapper tico needs the extra qtrace[tico]: pip install 'qtrace[tico]'"
    return (
        f"the installed tico does not work with the installed transformers ({error}); "
        "tico 0.3.0 and transformers 5.22.2 were tried together"
    )
