"""Measures the noise floor: the distance of the reference from its own result without rounding."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

from qtrace.engine.comparison import Comparison
from qtrace.engine.forcing import IN, OUT
from qtrace.engine.lockstep_pass import Options, Pass, copied
from qtrace.engine.model import Model
from qtrace.engine.pair import place
from qtrace.engine.plan import make_plan
from qtrace.engine.samples import map_tensors
from qtrace.numerics.tolerance import Floors, Place


def measured_floors(reference: Model, sample: Any, options: Options) -> tuple[Floors, str | None]:
    """Return the floors with the noise of each tensor of the reference, and a warning where measuring failed.

    The noise is the PEIR between the reference and a float64 copy of it on the same inputs. Where the model does not
    run in float64 (its code fixes a dtype), the noise is the PEIR between two runs, one of which has its floating-point
    inputs moved by one unit in the last place.
    """
    exact = copy.deepcopy(reference.root).double()
    done = _pass(reference, Model("reference in float64", exact), sample, map_tensors(_double, sample), options)
    del exact
    if done is None:
        moved = map_tensors(_moved, sample)
        done = _pass(reference, Model("reference again", copy.deepcopy(reference.root)), sample, moved, options)
    noise = {} if done is None else _noise(done.comparison)
    if not any(noise.values()):
        return options.floors, (
            "the noise floor could not be measured (the reference runs neither in float64 nor on inputs that can be "
            "moved); rounding noise is estimated from the dtypes instead"
        )
    return dataclasses.replace(options.floors, measured=noise), None


def _pass(reference: Model, other: Model, sample: Any, changed: Any, options: Options) -> Pass | None:
    """Return a pass of the reference against another form of itself, None where that form does not run."""
    plain = dataclasses.replace(options, only=(), skip=(), listeners=(None, None), progress=None)
    done = Pass((reference, other), make_plan(reference, other), sample, plain, candidate_sample=copied(changed))
    done.execute()
    for end in done.ends:
        if isinstance(end.error, KeyboardInterrupt):
            raise end.error
    return done if all(end.error is None for end in done.ends) else None


def _noise(comparison: Comparison) -> dict[Place, float]:
    found: dict[Place, float] = {}
    for met in comparison.met:
        for mark, pairs in ((IN, met.arguments), (OUT, met.outputs)):
            for name, pair in pairs:
                peir = pair.statistics().peir
                if peir is not None and any(dtype.is_floating_point for dtype in pair.dtypes):
                    found[place(met, mark, name)] = peir
    return found


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(tensor, torch.full_like(tensor, torch.inf)) if tensor.is_floating_point() else tensor
