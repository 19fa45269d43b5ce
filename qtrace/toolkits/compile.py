"""`torch.compile`: qtrace runs the result eagerly, so this compares what compiling changes in the module tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from qtrace.engine.samples import Sample


def wrap(reference: nn.Module, samples: Sequence[Sample], backend: str = "inductor") -> nn.Module:
    """Return `torch.compile(reference)`; hooks do not fire in compiled code, so it runs eagerly while traced."""
    return cast("nn.Module", torch.compile(reference, backend=backend))
