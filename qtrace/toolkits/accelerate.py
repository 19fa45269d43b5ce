"""Hugging Face's accelerate: weights that are loaded from main memory or disk for each call."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from torch import nn

from qtrace.engine.samples import Sample
from qtrace.toolkits.calibration import chosen, toolkit

PLACES = ("cpu", "disk")


def wrap(
    reference: nn.Module, samples: Sequence[Sample], offload: str = "disk", execution_device: str = "cpu"
) -> nn.Module:
    """Return `reference` with its weights offloaded to main memory (`cpu`) or to a temporary folder (`disk`).

    Between calls the weights are on the meta device. The folder is deleted with the model.

    Raises:
        SourceError: accelerate is missing.
        UsageError: no such place.
    """
    chosen("accelerate", "place to offload to", offload, PLACES)
    with toolkit("accelerate", "accelerate"):
        from accelerate import cpu_offload, disk_offload

        if offload == "cpu":
            cpu_offload(reference, execution_device=execution_device)
        else:
            folder = tempfile.TemporaryDirectory(prefix="qtrace-offload-")
            disk_offload(reference, folder.name, execution_device=execution_device)
            # The folder must live as long as the model.
            vars(reference)["_offload_folder"] = folder
    return reference
