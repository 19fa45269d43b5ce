"""A stored trace of several samples, as if one of them had been the only one."""

from __future__ import annotations

import copy
import dataclasses

import torch

from qtrace.traces.skeleton import skeleton, trace_of


def with_one_sample(model: torch.nn.Module, index: int) -> torch.nn.Module:
    """Return the skeleton of a trace that holds sample `index` alone; a model that can run is returned as it is."""
    trace = trace_of(model)
    if trace is None:
        return model
    manifest = trace.manifest
    one = copy.copy(trace)
    one.manifest = dataclasses.replace(
        manifest,
        samples=manifest.samples[index : index + 1],
        inputs=tuple(dataclasses.replace(given, sample=0) for given in manifest.inputs if given.sample == index),
    )
    return skeleton(one)
