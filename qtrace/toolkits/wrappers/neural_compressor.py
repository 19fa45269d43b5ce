"""Intel's neural-compressor: weights rounded to nearest, in groups."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import calibrate, toolkit


def wrap(reference: nn.Module, samples: Sequence[Sample], bits: int = 8, group_size: int = -1) -> nn.Module:
    """Return `reference` with the weights of its linear layers rounded to `bits`.

    `group_size` inputs share a scale; -1 is all of a channel's.

    Raises:
        SourceError: neural-compressor is missing.
    """
    with toolkit("neural_compressor", "neural_compressor", "neural-compressor[pt]"):
        from neural_compressor.torch.quantization import RTNConfig, convert, prepare

        prepared = prepare(reference, RTNConfig(bits=bits, group_size=group_size))
        quantized: nn.Module = convert(prepared)
        # A layer unpacks its weight, and exchanges its bias, when it is first called.
        calibrate(quantized, samples[:1])
    return quantized.train(reference.training)
