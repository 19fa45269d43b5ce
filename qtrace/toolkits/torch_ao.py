"""torch.ao.quantization, PyTorch's older quantization: dynamic, eager static and by a graph (FX)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import calibrate, chosen, first_sample
from qtrace.toolkits.quantizer import Reading, as_tensor, dtype_name, holders, levels_of, own_weight

TOOLKIT = "torch.ao"
# Its kernels add in 16 bits, so inputs have only 7.
_DYNAMIC = Reading(name="input", of="input", dtype="uint8", scale=None, levels=(0.0, 127.0), symmetric=False)


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the fake quantizers of a module; for a quantized module those of its weight and its output."""
    for name, child in holders(module, aligned):
        if bool(getattr(child, "fake_quant_enabled", False)) and hasattr(child, "activation_post_process"):
            yield _fake(name, child, module)
        for reading in _converted(child) if not child._modules else ():
            yield replace(reading, name=f"{name}.{reading.name}", of="inside")
    yield from _converted(module)


def _converted(module: torch.nn.Module) -> Iterator[Reading]:
    """Yield the quantizers of a converted module: of its weight, and of its output, or of its input if dynamic."""
    weight = _weight(module)
    if weight is not None:
        yield weight
    if not _is_converted(module):
        return
    if ".dynamic." in type(module).__module__:
        if weight is not None:
            yield _DYNAMIC
        return
    dtype = dtype_name(getattr(module, "dtype", torch.quint8))
    scale, zero = as_tensor(getattr(module, "scale", None)), as_tensor(getattr(module, "zero_point", None))
    if scale is not None and levels_of(dtype) is not None:
        yield Reading(
            name="output",
            of="output",
            dtype=dtype,
            scale=scale,
            zero_point=zero,
            levels=levels_of(dtype),
            symmetric=False,
            rectified="ReLU" in type(module).__name__,
        )


def _fake(name: str, child: Any, module: torch.nn.Module) -> Reading:
    observer = child.activation_post_process
    scheme = str(getattr(child, "qscheme", ""))
    observed = getattr(observer, "min_val", None), getattr(observer, "max_val", None)
    known = isinstance(observed[0], torch.Tensor) and isinstance(observed[1], torch.Tensor)
    is_channel = "channel" in scheme
    return Reading(
        name=name,
        of="weight" if name.startswith("weight") else "output",
        dtype=dtype_name(getattr(child, "dtype", observer.dtype)),
        scale=child.scale,
        zero_point=child.zero_point,
        rectified=not name.startswith("weight") and "ReLU" in type(module).__name__,
        levels=(float(child.activation_post_process.quant_min), float(child.activation_post_process.quant_max)),
        symmetric="symmetric" in scheme,
        axis=int(child.ch_axis) if is_channel else None,
        weight=own_weight(module) if name.startswith("weight") else None,
        observed=(observed[0], observed[1]) if known else None,  # type: ignore[arg-type]
    )


def _is_converted(module: torch.nn.Module) -> bool:
    return ".quantized." in f"{type(module).__module__}." and hasattr(module, "zero_point")


def _weight(module: torch.nn.Module) -> Reading | None:
    """Return the quantizer of a quantized module's weight, which a method of the module returns."""
    method = getattr(module, "weight", None)
    if not _is_converted(module) or not callable(method) or isinstance(method, torch.Tensor):
        return None
    weight = method()
    if not isinstance(weight, torch.Tensor) or not weight.is_quantized:
        return None
    dtype, channel = dtype_name(weight.dtype), "channel" in str(weight.qscheme())
    scale = weight.q_per_channel_scales() if channel else as_tensor(weight.q_scale())
    zero = weight.q_per_channel_zero_points() if channel else as_tensor(weight.q_zero_point())
    return Reading(
        name="weight",
        of="weight",
        dtype=dtype,
        scale=scale,
        zero_point=zero,
        levels=levels_of(dtype),
        symmetric=zero is None or not bool(zero.any()),
        axis=weight.q_per_channel_axis() if channel else None,
        stored=weight,
    )


MODES = ("dynamic", "static", "fx")


def wrap(
    reference: nn.Module,
    samples: Sequence[Sample],
    mode: str = "dynamic",
    convert: bool = True,
    fuse: Sequence[Sequence[str]] = (),
    backend: str | None = None,
) -> nn.Module:
    """Return `reference` quantized to int8.

    `dynamic` quantizes linear layers, and activations at each call. `static` and `fx` calibrate on the samples, and
    stop at observers without `convert`. `static` fuses the lists of modules in `fuse`, such as
    `[["conv", "bn", "relu"]]`; `fx` finds them itself, in models that `torch.fx` can trace.

    Raises:
        UsageError: no such mode.
    """
    chosen("torch_ao", "mode", mode, MODES)
    engines = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = backend or ("x86" if "x86" in engines else engines[-1])
    quantization: Any = torch.ao.quantization
    with warnings.catch_warnings():
        # With every call it warns that torchao will replace it.
        warnings.simplefilter("ignore")
        if mode == "dynamic":
            dynamic: nn.Module = quantization.quantize_dynamic(reference, {nn.Linear}, dtype=torch.qint8)
            return dynamic.train(reference.training)
        prepared = _static(reference, fuse) if mode == "static" else _fx(reference, samples)
        calibrate(prepared, samples)
        if not convert:
            # Observers are new objects, and so in training mode.
            return prepared.train(reference.training)
        if mode == "fx":
            from torch.ao.quantization.quantize_fx import convert_fx

            return convert_fx(cast("torch.fx.GraphModule", prepared))
        result: nn.Module = quantization.convert(prepared)
        return result.train(reference.training)


def _static(reference: nn.Module, fuse: Sequence[Sequence[str]]) -> nn.Module:
    quantization: Any = torch.ao.quantization
    if fuse:
        quantization.fuse_modules(reference, [list(group) for group in fuse], inplace=True)
    wrapped: nn.Module = quantization.QuantWrapper(reference).eval()
    wrapped.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared: nn.Module = quantization.prepare(wrapped)
    return prepared


def _fx(reference: nn.Module, samples: Sequence[Sample]) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    sample = first_sample("torch_ao", samples)
    mapping = get_default_qconfig_mapping(torch.backends.quantized.engine)
    prepared: nn.Module = prepare_fx(reference, mapping, sample.args or tuple(sample.kwargs.values()))
    return prepared
