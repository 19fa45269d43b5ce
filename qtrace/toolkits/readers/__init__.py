"""Readers of quantizers, a toolkit a file: `TOOLKIT`, and `read(module, aligned)`, which yields readings.

A file in this package is a reader; none imports its toolkit, they know it by its attributes. `generic` is asked where
no other finds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import torch

from qtrace.toolkits.quantizer import Reading

Reader = Callable[[torch.nn.Module, frozenset[torch.nn.Module]], Iterator[Reading]]
_LAST = "generic"


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> tuple[str, list[Reading]]:
    """Return the toolkit whose quantizers a module holds, and these; ("", []) where it has none.

    `aligned` are the candidate's modules that answer to one of the reference: what these hold is theirs.
    """
    for toolkit, reader in _readers():
        found = list(reader(module, aligned))
        if found:
            return toolkit, found
    return "", []


@cache
def _readers() -> tuple[tuple[str, Reader], ...]:
    names = sorted((info.name for info in iter_modules(__path__)), key=lambda name: (name == _LAST, name))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return tuple((module.TOOLKIT, module.read) for module in modules)
