"""Intel's nncf: quantizers at the model's root, named by the function that they follow, or compressed weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import chosen, first_sample, toolkit
from qtrace.toolkits.quantizer import Reading, channel_axis, integer_name, own_weight

TOOLKIT = "nncf"
_HOOKS = "__nncf_hooks"
MARKS = (_HOOKS,)
# "encoder/attention/linear/0__1": the second argument of the first `linear` that is called there.
_PLACE = re.compile(r"(?P<module>.*)/(?P<function>[^/]+)/(?P<call>\d+)__(?P<port>\d+)")
# The functions whose weight is not the second argument.
_WEIGHT_PORT = {"layer_norm": 2, "group_norm": 2, "batch_norm": 3}


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers at the functions and the parameters of a module, if the model's root is in `aligned`."""
    root = next((held for held in (module, *aligned) if _HOOKS in held._modules), None)
    path = None if root is None else next((name for name, held in root.named_modules() if held is module), None)
    if root is None or path is None:
        return
    hooks: Any = root._modules[_HOOKS]
    for key, quantizer in _at(hooks.post_hooks):
        name, _, port = key.rpartition("__")
        parameter = name.replace(":", ".").rpartition(".")
        if parameter[0] == path and parameter[2] in module._parameters and port == "0":
            yield from _readings(parameter[2], "weight", quantizer, module, parameter[2])
        elif root is module and "/" not in name and ":" not in name:
            yield from _readings(name, "input", quantizer, module)
    place = _place(root, path)
    if place is None:
        return
    for after, held in ((False, hooks.pre_hooks), (True, hooks.post_hooks)):
        for key, quantizer in _at(held):
            found = _PLACE.fullmatch(key)
            if found is not None and (found["module"], int(found["call"])) == place:
                of = _of(module, found["function"], int(found["port"]), after)
                yield from _readings(of if of != "inside" else key, of, quantizer, module)


def _at(held: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for key, several in held.named_children():
        yield from ((key, quantizer) for quantizer in several.children())


def _place(root: torch.nn.Module, path: str) -> tuple[str, int] | None:
    """Return nncf's name of a module, and the module's index among those of that name; None if called several times.

    nncf leaves out lists and their direct members, so that all layers have one name, and counts calls.
    """
    short, last = _short(root, path), path.rpartition(".")[2]
    named = [name for name, _ in root.named_modules() if name.rpartition(".")[2] == last or not name]
    alike = [name for name in named if _short(root, name) == short and not isinstance(root.get_submodule(name), _LISTS)]
    hooks: Any = root._modules[_HOOKS]
    matches = [_PLACE.fullmatch(key) for held in (hooks.pre_hooks, hooks.post_hooks) for key, _ in _at(held)]
    last_call = max((int(found["call"]) for found in matches if found and found["module"] == short), default=-1)
    return (short, alike.index(path)) if path in alike and 0 <= last_call < len(alike) else None


_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict)


def _short(root: torch.nn.Module, path: str) -> str:
    kept, above = [], root
    for name in path.split(".") if path else ():
        inner = above._modules[name]
        assert inner is not None
        if not isinstance(above, _LISTS) and not isinstance(inner, _LISTS):
            kept.append(name)
        above = inner
    return "/".join(kept)


def _of(module: torch.nn.Module, function: str, port: int, after: bool) -> str:
    """Return which tensor a quantizer rounds; for a function in a container's own code it is one in between."""
    if module._modules.keys() - {_HOOKS}:
        return "inside"
    if after:
        return "output"
    return "weight" if port == _WEIGHT_PORT.get(function, 1) else "input" if port == 0 else "inside"


def _readings(
    name: str, of: str, quantizer: Any, module: torch.nn.Module, parameter: str = "weight"
) -> Iterator[Reading]:
    buffers, parameters = quantizer._buffers, quantizer._parameters
    if "_level_high" in buffers:
        if bool(buffers["enabled"].any()) and not getattr(quantizer, "_is_using_log_scale_storage", False):
            yield _fake(name, of, quantizer, own_weight(module, parameter) if of == "weight" else None)
    elif "_scale" in buffers and "_scale" not in parameters:
        yield _compressed(name, quantizer, module._parameters[parameter], parameter)


def _fake(name: str, of: str, quantizer: Any, weight: torch.Tensor | None) -> Reading:
    low, high = (float(quantizer._buffers[key]) for key in ("_level_low", "_level_high"))
    held = {key: value.detach() for key, value in quantizer._parameters.items() if value is not None}
    zero = None
    if "_scale_param_storage" in held:
        # The parameter is the largest value, that of the last level.
        scale = held["_scale_param_storage"] / high
    else:
        scale = held["_input_range_param_storage"] / (high - low)
        zero = low - (held["input_low"] / scale).round()
    return Reading(
        name=name,
        of=of,
        dtype=integer_name(low, high),
        scale=scale,
        zero_point=zero,
        levels=(low, high),
        symmetric=zero is None,
        axis=channel_axis(scale),
        weight=weight,
    )


def _compressed(name: str, decompressor: Any, packed: torch.Tensor | None, parameter: str) -> Reading:
    """Return the quantizer of a compressed weight, which the decompressor returns as a float again."""
    four = hasattr(decompressor, "compressed_weight_shape")
    affine = "_zero_point" in decompressor._buffers
    levels = ((0.0, 15.0) if affine else (-8.0, 7.0)) if four else ((0.0, 255.0) if affine else (-128.0, 127.0))
    signed = decompressor._buffers["_scale"].detach().to(torch.float32)
    # A scale below zero reverses the levels, so that the longer end of the range is on the side of the larger values.
    scale, zero = signed.abs(), decompressor._buffers.get("_zero_point")
    if zero is None and bool((signed < 0).any()):
        zero = 0 - (signed < 0).to(torch.float32)
    if affine and zero is not None and four:
        zero = torch.stack((zero & 15, zero >> 4), dim=-1).reshape(-1)[: scale.numel()].reshape(scale.shape)
    stored = None
    if packed is not None:
        with torch.no_grad():
            stored = decompressor(packed)
    grouped = four and len(decompressor.compressed_weight_shape) > scale[..., 0].dim()
    return Reading(
        name=name,
        of="weight",
        dtype=integer_name(*levels),
        scale=scale.squeeze(-1) if grouped else scale,
        zero_point=None if zero is None else (zero.squeeze(-1) if grouped else zero).to(torch.float32),
        levels=levels,
        symmetric=not affine,
        axis=None if grouped else channel_axis(scale),
        group=int(decompressor.compressed_weight_shape[-1]) if grouped else None,
        parameter=parameter,
        stored=stored,
    )


MODES = ("ptq", "weights")


def wrap(reference: nn.Module, samples: Sequence[Sample], mode: str = "ptq", transformer: bool = False) -> nn.Module:
    """Return `reference` quantized to int8: weights and activations (`ptq`), or `weights` alone.

    `transformer` tells `ptq` the type of the model, so that it does not quantize attention's softmax.

    Raises:
        SourceError: nncf is missing.
        UsageError: no such mode, or no sample.
    """
    chosen("nncf", "mode", mode, MODES)
    first_sample("nncf", samples)
    # nncf builds a C++ extension at its first use, and by default gives up after a minute.
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "600")
    with toolkit("nncf", "nncf"):
        import nncf

        dataset = nncf.Dataset(list(samples), _arguments)
        if mode == "weights":
            quantized: nn.Module = nncf.compress_weights(reference, dataset=dataset)
        else:
            kind = nncf.ModelType.TRANSFORMER if transformer else None
            quantized = nncf.quantize(reference, dataset, subset_size=len(samples), model_type=kind)
    return quantized.train(reference.training)


def _arguments(sample: Sample) -> Any:
    if sample.kwargs:
        return dict(sample.kwargs)
    return sample.args[0] if len(sample.args) == 1 else sample.args
