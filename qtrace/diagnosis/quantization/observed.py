"""What a reference's module takes and returns in one call: what the candidate's quantizers should have room for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qtrace.engine.arguments import Bound
from qtrace.numerics import NoValues, plain
from qtrace.tree import leaves


class Observed:
    """Told of a call (`qtrace.engine.recording.During`), it keeps copies of the first tensors of floats.

    `values` has that of the arguments under "input", that of what is returned under "output".
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def begin(self, arguments: Bound) -> None:
        """Keep the input, before the module can write to it."""
        self._keep("input", {name: arguments.values[name] for name in arguments.values if name in arguments.passed})

    def end(self, value: Any) -> None:
        """Keep the output."""
        self._keep("output", value)

    def _keep(self, name: str, value: Any) -> None:
        for _, leaf in leaves(value):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
                try:
                    self.values[name] = torch.clone(plain(leaf))
                except NoValues:
                    continue
                return
