"""torch.ao.quantization, PyTorch's older quantization: dynamic, eager static and by a graph (FX)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import calibrate, chosen, first_sample

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

    `dynamic` quantizes linear layers, and activations as they come. `static` and `fx` calibrate on the samples, and
    stop at observers without `convert`. `static` fuses the lists of modules in `fuse`, such as
    `[["conv", "bn", "relu"]]`; `fx` finds them itself, in models that `torch.fx` can follow.

    Raises:
        UsageError: no such mode.
    """
    chosen("torch_ao", "mode", mode, MODES)
    engines = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = backend or ("x86" if "x86" in engines else engines[-1])
    quantization: Any = torch.ao.quantization
    with warnings.catch_warnings():
        # It says with every call that torchao is to follow it.
        warnings.simplefilter("ignore")
        if mode == "dynamic":
            dynamic: nn.Module = quantization.quantize_dynamic(reference, {nn.Linear}, dtype=torch.qint8)
            return dynamic.train(reference.training)
        prepared = _static(reference, fuse) if mode == "static" else _fx(reference, samples)
        calibrate(prepared, samples)
        if not convert:
            # Observers are made new, and so in training mode.
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
