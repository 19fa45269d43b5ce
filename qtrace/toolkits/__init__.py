"""Quantization toolkits and other makers of candidates, one file each, named as `--wrap` names them.

Such a file holds what qtrace knows of one toolkit:

`wrap(reference, samples, **args) -> nn.Module`
    makes the candidate from a copy of the reference. The toolkit itself is imported inside, so that it may be absent.
`TOOLKIT` and `read(module, aligned)`
    yield the quantizers that one module of a candidate holds. A reader never imports its toolkit: it knows the
    toolkit's modules by their attributes.
`MARKS`
    are names of attributes, buffers or children of which a model has at least one if the toolkit quantized it. A reader
    with marks is called for such models only.

Any of them may be missing: a cast has no quantizers. A new toolkit is a new file here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import torch

from qtrace.toolkits.quantizer import Reading

Reader = Callable[[torch.nn.Module, frozenset[torch.nn.Module]], Iterator[Reading]]
Readers = tuple[tuple[str, Reader], ...]
# Files shared by the toolkits, and the reader that is called if no toolkit's own reader finds a quantizer.
_GENERIC = "generic"
_SHARED = ("calibration", "quantizer", _GENERIC)
TOOLKITS = tuple(sorted(info.name for info in iter_modules(__path__) if info.name not in _SHARED))


def readers_for(modules: Iterable[torch.nn.Module]) -> Readers:
    """Return the readers to call for the modules of one model, by toolkit; the generic one comes last."""
    shown = {name for module in modules for name in _names(module)}
    return tuple((toolkit, reader) for toolkit, marks, reader in _readers() if marks is None or marks & shown)


def read(module: torch.nn.Module, aligned: frozenset[torch.nn.Module], readers: Readers) -> tuple[str, list[Reading]]:
    """Return the toolkit whose quantizers a module holds, and these quantizers; ("", []) where it has none.

    `aligned` are the candidate's modules with a partner in the reference: quantizers inside them belong to them.
    """
    for toolkit, reader in readers:
        found = list(reader(module, aligned))
        if found:
            return toolkit, found
    return "", []


def _names(module: torch.nn.Module) -> Iterator[str]:
    """Yield the names of all attributes, children and buffers of a module, and of its parameters' attributes."""
    # A scripted module keeps its children in no dictionary, and no toolkit quantizes one.
    for held in (vars(module), module._modules, module._buffers):
        yield from held if isinstance(held, dict) else ()
    parameters = module._parameters
    for parameter in parameters.values() if isinstance(parameters, dict) else ():
        yield from getattr(parameter, "__dict__", ())


@cache
def _readers() -> tuple[tuple[str, frozenset[str] | None, Reader], ...]:
    modules = [import_module(f"{__name__}.{name}") for name in (*TOOLKITS, _GENERIC)]
    return tuple(
        (module.TOOLKIT, frozenset(module.MARKS) if hasattr(module, "MARKS") else None, module.read)
        for module in modules
        if hasattr(module, "read")
    )
