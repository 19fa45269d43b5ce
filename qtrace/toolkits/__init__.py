"""Quantization toolkits and other makers of candidates, one file each, named as `--wrap` names them.

Such a file holds what qtrace knows of one toolkit:

`wrap(reference, samples, **args) -> nn.Module`
    makes the candidate from a copy of the reference. The toolkit itself is imported inside, so that it may be absent.
`TOOLKIT` and `read(module, aligned)`
    yield the quantizers that one module of a candidate holds. A reader never imports its toolkit: it knows the
    toolkit's modules by their attributes.

Either may be missing: a cast has no quantizers. A new toolkit is a new file here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import torch

from qtrace.toolkits.quantizer import Reading

Reader = Callable[[torch.nn.Module, frozenset[torch.nn.Module]], Iterator[Reading]]
# Files that toolkits have in common, and the reader that is asked where no toolkit's own finds anything.
_GENERIC = "generic"
_SHARED = ("calibration", "quantizer", _GENERIC)
TOOLKITS = tuple(sorted(info.name for info in iter_modules(__path__) if info.name not in _SHARED))


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module]) -> tuple[str, list[Reading]]:
    """Return the toolkit whose quantizers a module holds, and these quantizers; ("", []) where it has none.

    `aligned` are the candidate's modules that have a partner in the reference: the quantizers inside them are theirs.
    """
    for toolkit, reader in _readers():
        found = list(reader(module, aligned))
        if found:
            return toolkit, found
    return "", []


@cache
def _readers() -> tuple[tuple[str, Reader], ...]:
    modules = [import_module(f"{__name__}.{name}") for name in (*TOOLKITS, _GENERIC)]
    return tuple((module.TOOLKIT, module.read) for module in modules if hasattr(module, "read"))
