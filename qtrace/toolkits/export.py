"""`torch.export`: the program that torch traces through the model, as a tree of modules again."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import first_sample


def unflattened(made: Any) -> Any:
    """Return the modules of an `ExportedProgram`, whose mode is in its graph; any other object as it is."""
    if not isinstance(made, torch.export.ExportedProgram):
        return made
    from torch.export import unflatten

    return unflatten(made).eval()


def wrap(reference: nn.Module, samples: Sequence[Sample], strict: bool = False) -> nn.Module:
    """Return the exported program of the first sample, unflattened: a graph module per module of `reference`.

    The flat program's own modules hold parameters and are never called; unflattened, each call is one of a module.
    Inputs of other shapes than the first sample's are refused when the program runs.

    Raises:
        UsageError: there is no sample.
    """
    sample = first_sample("export", samples)
    # If it fails it prints the whole graph up to that point, which would bury the error.
    printed = io.StringIO()
    with torch.no_grad(), contextlib.redirect_stderr(printed):
        program = torch.export.export(reference, sample.args, sample.kwargs, strict=strict)
    sys.stderr.write(printed.getvalue())
    return torch.export.unflatten(program).train(reference.training)
