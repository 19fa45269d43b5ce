"""Intel's nncf: fake quantization by hooks after a run of the model, or compressed weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import chosen, first_sample, toolkit

MODES = ("ptq", "weights")


def wrap(reference: nn.Module, samples: Sequence[Sample], mode: str = "ptq", transformer: bool = False) -> nn.Module:
    """Return `reference` quantized to int8: weights and activations (`ptq`), or `weights` alone.

    `transformer` tells `ptq` what the model is, so that it leaves attention's softmax alone.

    Raises:
        SourceError: nncf is missing.
        UsageError: no such mode, or no sample.
    """
    chosen("nncf", "mode", mode, MODES)
    first_sample("nncf", samples)
    # It builds a C++ extension when it is first used, and gives up after a minute.
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
