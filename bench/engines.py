"""What is measured: two bare forwards, `qtrace.trace`, and the tracing engine that tico ships, on one pair."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import torch

import qtrace

Engine = Callable[[torch.nn.Module, torch.nn.Module, dict[str, Any]], None]


def bare(reference: torch.nn.Module, candidate: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """Run both models and nothing else."""
    with torch.no_grad():
        reference(**inputs)
        candidate(**inputs)


def trace(reference: torch.nn.Module, candidate: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """Compare outputs and arguments in one lockstep pass."""
    report = qtrace.trace(reference, candidate, inputs, local=False)
    # A fast run that compared nothing would be no figure.
    assert report.coverage.compared == report.coverage.reference_calls > 0
    assert sum(row.peir is not None and row.peir > 0 for row in report.rows) > report.coverage.compared / 2


def tico_engine(reference: torch.nn.Module, candidate: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """Trace both models with tico's tools as its own script does: outputs kept, then compared and printed."""
    from tico.quantization.wrapq.utils import introspection

    outputs: list[dict[str, Any]] = [{}, {}]
    for model, kept in zip((reference, candidate), outputs, strict=True):
        hook = introspection.create_tracing_hook(print_input_output=False, module_outputs=kept)
        introspection.trace_model_input_output(model, inputs, hook)
    with contextlib.redirect_stdout(io.StringIO()):
        introspection.compare_side_by_side(*outputs)


def engines() -> dict[str, Engine]:
    """Return what can be measured here, by name; "bare" is what the others are measured against."""
    found: dict[str, Engine] = {"bare": bare, "qtrace": trace}
    if importlib.util.find_spec("tico") is not None:
        found["tico"] = tico_engine
    return found
