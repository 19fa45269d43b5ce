"""`torch.export`: the program that torch follows through the model, as a tree of modules again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qtrace.sources.samples import Sample
from qtrace.sources.wrappers.toolkit import first_sample


def wrap(reference: nn.Module, samples: Sequence[Sample], strict: bool = False) -> nn.Module:
    """Return the exported program of the first sample, unflattened: a graph module per module of `reference`.

    The flat program's own modules hold parameters and are never called; unflattened, each call is one of a module.
    Inputs of other shapes than the first sample's are refused when the program runs.

    Raises:
        UsageError: there is no sample.
    """
    sample = first_sample("export", samples)
    with torch.no_grad():
        program = torch.export.export(reference, sample.args, sample.kwargs, strict=strict)
    return torch.export.unflatten(program).train(reference.training)
