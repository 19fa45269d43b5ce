"""bitsandbytes: linear layers with int8 weights and each row's largest value, or 4-bit ones in a table of levels."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.errors import UsageError
from qtrace.toolkits.calibration import linear_layers, toolkit
from qtrace.toolkits.quantizer import Reading

TOOLKIT = "bitsandbytes"
MARKS = ("quant_state", "SCB")
_FOUR_BITS = 16


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> Iterator[Reading]:
    """Yield the quantizer of the weight; for an int8 layer also the quantizer of each row of the input."""
    weight: Any = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    if hasattr(state, "absmax") and hasattr(state, "blocksize"):
        yield _table(weight, state)
    elif hasattr(weight, "SCB") and weight.dtype is torch.int8:
        # The first call moves the scales from the weight to the layer.
        most = weight.SCB if weight.SCB is not None else getattr(getattr(module, "state", None), "SCB", None)
        levels = (-127.0, 127.0)
        scale = torch.empty(0) if most is None else (most.detach() / levels[1])[:, None]
        yield Reading(
            name="weight",
            of="weight",
            dtype="int8",
            scale=scale,
            levels=levels,
            symmetric=True,
            axis=0,
            stored=weight.detach() * scale if scale.numel() else None,
        )
        yield Reading(name="input", of="input", dtype="int8", scale=None, levels=levels, symmetric=True, by_token=True)


def _table(weight: torch.Tensor, state: Any) -> Reading:
    shape, size = tuple(state.shape), int(state.blocksize)
    most = _largest(state)
    codes = state.code.detach().to(torch.float32)
    count, rest = divmod(shape[-1], size)
    # A block continues in the next row if a row is no whole number of blocks.
    blocks = None if rest else most.reshape(*shape[:-1], count)
    return Reading(
        name="weight",
        of="weight",
        dtype=str(getattr(state, "quant_type", "table")),
        scale=most if blocks is None else blocks,
        levels=(codes.min().item(), codes.max().item()),
        symmetric=True,
        group=size,
        codes=codes,
        stored=_unpacked(weight, state, codes, most),
    )


def _largest(state: Any) -> torch.Tensor:
    """Return the largest value of each block, in the blocks' order; it may be quantized itself."""
    most: torch.Tensor = state.absmax.detach()
    if getattr(state, "packing_format_for_cpu", False):
        return most.T.reshape(-1).to(torch.float32)
    if not getattr(state, "nested", False):
        return most.to(torch.float32)
    outer = state.state2
    scale = outer.absmax.repeat_interleave(outer.blocksize)[: most.numel()]
    found: torch.Tensor = outer.code[most.long()] * scale + state.offset
    return found


def _unpacked(weight: torch.Tensor, state: Any, codes: torch.Tensor, most: torch.Tensor) -> torch.Tensor | None:
    """Return the rounded weight; None if its order is that of a kernel, or if a level does not take half a byte."""
    if getattr(state, "packing_format_for_cpu", False) or len(codes) != _FOUR_BITS:
        return None
    packed = weight.detach().reshape(-1).view(torch.uint8)
    places = torch.stack((packed >> 4, packed & 15), dim=1).flatten()[: math.prod(state.shape)]
    spread = most.repeat_interleave(int(state.blocksize))[: places.numel()]
    return (codes[places.long()] * spread).reshape(tuple(state.shape))


def wrap(
    reference: nn.Module, samples: Sequence[Sample], bits: int = 8, keep: Sequence[str] = ("lm_head",)
) -> nn.Module:
    """Return `reference` with bitsandbytes' layers for its linear ones, except those whose own name is in `keep`.

    With 8 bits activations are rounded too, by rows, but for outliers; 4 bits are the NF4 format.

    Raises:
        SourceError: bitsandbytes is missing.
        UsageError: neither 8 nor 4 bits.
    """
    if bits not in (4, 8):
        raise UsageError(f"the wrapper bitsandbytes has 4 and 8 bits, and was asked for {bits}")
    with toolkit("bitsandbytes", "bitsandbytes"):
        for parent, name, layer in linear_layers(reference, keep):
            setattr(parent, name, _quantized(layer, bits))
    _LOGGER.addFilter(_ONCE)
    return reference


class _Once(logging.Filter):
    """Lets each message through once: the toolkit repeats its message with every call of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


_LOGGER = logging.getLogger("bitsandbytes.autograd._functions")
_ONCE = _Once()


def _quantized(layer: nn.Linear, bits: int) -> nn.Module:
    import bitsandbytes as bnb

    sizes: tuple[Any, ...] = (layer.in_features, layer.out_features, layer.bias is not None)
    if bits == 8:
        made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
        made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(*sizes, quant_type="nf4", compute_dtype=layer.weight.dtype)
        made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = layer.bias
    # The move to a device quantizes the layer.
    moved: nn.Module = made.to(layer.weight.device).train(layer.training)
    return moved
