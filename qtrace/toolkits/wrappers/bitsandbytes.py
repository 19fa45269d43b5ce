"""bitsandbytes: linear layers with 8- or 4-bit weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from qtrace.engine.samples import Sample
from qtrace.errors import UsageError
from qtrace.toolkits.wrappers.toolkit import linear_layers, toolkit


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
    """Lets each message through once: what the toolkit says of a layer, it says with every call of every layer."""

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
    # It is the move to a device that quantizes.
    moved: nn.Module = made.to(layer.weight.device).train(layer.training)
    return moved
