"""Hugging Face's optimum-quanto: weights, and activations if asked for, in few bits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.wrappers.toolkit import calibrate, chosen, toolkit

TYPES = ("qint2", "qint4", "qint8", "qfloat8")


def wrap(
    reference: nn.Module, samples: Sequence[Sample], weights: str = "qint8", activations: str | None = None
) -> nn.Module:
    """Return `reference` with quanto's layers in the place of its own, weights frozen.

    With `activations` the model is calibrated on the samples first. The result cannot be deep-copied.

    Raises:
        SourceError: optimum-quanto is missing.
        UsageError: no such type.
    """
    for given in (weights, activations):
        if given is not None:
            chosen("quanto", "type", given, TYPES)
    with toolkit("quanto", "optimum.quanto", "optimum-quanto"):
        from optimum import quanto

        types = [getattr(quanto, given) if given is not None else None for given in (weights, activations)]
        quanto.quantize(reference, weights=types[0], activations=types[1])
        if activations is not None:
            with quanto.Calibration():
                calibrate(reference, samples)
        quanto.freeze(reference)
    return reference.train(reference.training)
