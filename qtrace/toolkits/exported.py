"""Programs of `torch.export`: their graph calls operators, and only unflattened it calls modules again."""

from __future__ import annotations

from typing import Any

import torch


def unflattened(made: Any) -> Any:
    """Return the modules of an `ExportedProgram`, whose mode is in its graph, and anything else as it is."""
    if not isinstance(made, torch.export.ExportedProgram):
        return made
    from torch.export import unflatten

    return unflatten(made).eval()
