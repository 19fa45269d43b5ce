"""PyTorch's torchao: parameters that are tensor subclasses with their scales, and the fake quantizers of its QAT."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import chosen, toolkit
from qtrace.toolkits.quantizer import Reading, dtype_name, levels_of, own_weight

TOOLKIT = "torchao"
MARKS = ("qdata", "weight_fake_quantizer", "activation_fake_quantizer")


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizers of the parameters, the input quantizers that these imply, and fake quantizers."""
    for name, tensor in module._parameters.items():
        if tensor is not None and hasattr(tensor, "qdata") and hasattr(tensor, "block_size"):
            yield _stored(name, tensor)
            yield from _input(tensor)
    for name, of in (("weight_fake_quantizer", "weight"), ("activation_fake_quantizer", "input")):
        fake = module._modules.get(name)
        config: Any = getattr(fake, "config", None)
        if fake is not None and hasattr(config, "dtype") and getattr(fake, "enabled", True):
            dtype = dtype_name(config.dtype)
            yield Reading(
                name=name,
                of=of,
                dtype=dtype,
                scale=None if getattr(config, "is_dynamic", True) and of == "input" else getattr(fake, "scale", None),
                zero_point=getattr(fake, "zero_point", None),
                levels=levels_of(dtype),
                symmetric=_is_symmetric(config),
                weight=own_weight(module) if of == "weight" else None,
                axis=getattr(getattr(config, "granularity", None), "axis", None) if of == "weight" else None,
                group=getattr(getattr(config, "granularity", None), "group_size", None),
                by_token=_is_by_token(getattr(config, "granularity", None)),
            )


def _input(tensor: Any) -> Iterator[Reading]:
    """Yield the quantizer of the input of a layer with such a weight."""
    told, scale = getattr(tensor, "act_quant_kwargs", None), getattr(tensor, "act_quant_scale", None)
    if told is not None:
        dtype = dtype_name(getattr(told, "float8_dtype", tensor.qdata.dtype))
        levels = levels_of(dtype)
        if getattr(told, "reduce_range", False) and levels is not None:
            levels = levels[0] // 2, levels[1] // 2
        yield Reading(
            name="input",
            of="input",
            dtype=dtype,
            scale=scale,
            zero_point=getattr(tensor, "act_quant_zero_point", None),
            levels=levels,
            symmetric=_is_symmetric(told),
            by_token=scale is None and _is_by_token(getattr(told, "granularity", None)),
            gain=getattr(tensor, "act_pre_scale", None),
        )
    named = getattr(tensor, "activation_quantization", None)
    if named is not None:
        # "int8_asym_per_token"
        named = str(getattr(named, "value", named))
        dtype = named.partition("_")[0]
        yield Reading(
            name="input",
            of="input",
            dtype=dtype,
            scale=None,
            levels=levels_of(dtype),
            symmetric="asym" not in named,
            by_token="token" in named,
        )


def _stored(name: str, tensor: Any) -> Reading:
    dtype = dtype_name(getattr(tensor, "target_dtype", tensor.qdata.dtype))
    zero, levels = getattr(tensor, "zero_point", None), levels_of(dtype)
    moved = getattr(tensor, "act_pre_scale", None)
    if levels is not None and getattr(tensor, "reduce_range", False):
        levels = levels[0] // 2, levels[1] // 2
    shape, block = tuple(tensor.shape), tuple(tensor.block_size)
    # Blocks that span all axes but one are channels; a block that is a part of an axis is a group.
    cut = [axis for axis, (size, of) in enumerate(zip(shape, block, strict=False)) if of < size]
    group = next((block[axis] for axis in cut if block[axis] > 1), None)
    return Reading(
        name=name,
        of="weight",
        dtype=dtype,
        scale=tensor.scale,
        zero_point=zero,
        levels=levels,
        symmetric=zero is None or not bool(zero.any()),
        axis=cut[0] if len(cut) == 1 and group is None else None,
        group=group,
        parameter=name,
        stored=tensor,
        gain=None if moved is None else 1 / moved,
    )


def _is_by_token(granularity: Any) -> bool:
    return type(granularity).__name__ in ("PerRow", "PerToken")


def _is_symmetric(config: Any) -> bool | None:
    mapping = getattr(getattr(config, "mapping_type", None), "name", None)
    return None if mapping is None else mapping.startswith("SYMMETRIC")


SCHEMES = ("int8_weight_only", "int8_dynamic", "int4_weight_only", "float8_weight_only", "intx_weight_only", "qat")


def wrap(
    reference: nn.Module,
    samples: Sequence[Sample],
    scheme: str = "int8_weight_only",
    bits: int = 4,
    group_size: int = 32,
    keep: Sequence[str] = (),
) -> nn.Module:
    """Return `reference` with its linear layers quantized in place by `torchao.quantize_`.

    Layers whose own name is in `keep` stay as they are, such as one whose size fits no group.

    `int8_weight_only` and `float8_weight_only` round the weights, `int8_dynamic` the activations as well;
    `intx_weight_only` rounds weights to `bits` in groups of `group_size` with torch's own operators, and `qat`
    fake-quantizes them in the same way, as before training. `int4_weight_only` packs weights for the kernels of the
    device: on the processor by torchao's prototype, since its stable format needs an accelerator.

    Raises:
        SourceError: torchao is missing.
        UsageError: no such scheme.
    """
    chosen("torchao", "scheme", scheme, SCHEMES)
    with toolkit("torchao", "torchao"):
        from torchao.quantization import quantize_

        on_processor = all(parameter.device.type == "cpu" for parameter in reference.parameters())
        # The toolkit's own filter, which leaves out layers that cannot be quantized.
        fits: Any = inspect.signature(quantize_).parameters["filter_fn"].default
        quantize_(
            reference,
            _config(scheme, bits, group_size, on_processor),
            filter_fn=lambda module, path: fits(module, path) and path.rpartition(".")[2] not in keep,
        )
    # Fake-quantized layers are new objects, and so in training mode.
    return reference.train(reference.training)


def _config(scheme: str, bits: int, group_size: int, on_processor: bool) -> Any:
    import torchao.quantization as ao

    if scheme == "int8_weight_only":
        return ao.Int8WeightOnlyConfig()
    if scheme == "int8_dynamic":
        return ao.Int8DynamicActivationInt8WeightConfig()
    if scheme == "int4_weight_only" and on_processor:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=group_size)
    if scheme == "int4_weight_only":
        return ao.Int4WeightOnlyConfig(group_size=group_size)
    if scheme == "float8_weight_only":
        return ao.Float8WeightOnlyConfig()
    stored = getattr(torch, f"int{bits}")
    if scheme == "intx_weight_only":
        return ao.IntxWeightOnlyConfig(weight_dtype=stored, granularity=ao.PerGroup(group_size))
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    return QATConfig(weight_config=IntxFakeQuantizeConfig(stored, group_size=group_size), step="prepare")
