"""The modules of a stored trace as a tree that can be aligned and described, but not run."""

from __future__ import annotations

from typing import Any

import torch

from qtrace.errors import UsageError
from qtrace.traces.literals import decode
from qtrace.traces.manifest import StoredModule, StoredParameter
from qtrace.traces.reader import Trace, without_values


class Skeleton(torch.nn.Module):
    """A module without code: its class name, plain attributes, and parameters without values, as they were.

    `stored` is what the trace says of it, `trace` the whole trace, at the root only.
    """

    stored: StoredModule | None = None
    trace: Trace | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: what a trace returned is in the trace."""
        raise UsageError("a stored trace cannot be run on inputs of its own; capture the model again on these inputs")


def skeleton(trace: Trace) -> Skeleton:
    """Return the root of the trace's modules, each under its path."""
    made: dict[str, Skeleton] = {}
    for stored in trace.manifest.modules:
        module = _made(stored) if stored.alias_of is None else made[stored.alias_of]
        made[stored.path] = module
        if stored.path:
            _around(made, stored.path)._modules[stored.path.rpartition(".")[2]] = module
    root = made.setdefault("", _made(StoredModule(path="", type=trace.manifest.model.type)))
    root.trace = trace
    # So that another entry than forward is found where it is looked for.
    vars(root).setdefault(trace.manifest.call, root.forward)
    return root.eval()


def trace_of(model: torch.nn.Module) -> Trace | None:
    """Return the trace that a model stands for, None for one that can run."""
    return model.trace if isinstance(model, Skeleton) else None


def _around(made: dict[str, Skeleton], path: str) -> Skeleton:
    """Return the module around a path; where the trace does not tell of one, an empty one is put there."""
    parent = path.rpartition(".")[0]
    if parent not in made:
        made[parent] = _made(StoredModule(path=parent, type="Module"))
        if parent:
            _around(made, parent)._modules[parent.rpartition(".")[2]] = made[parent]
    return made[parent]


def _made(stored: StoredModule) -> Skeleton:
    # Of all texts that a manifest may hold Python takes any for a name but this.
    module: Skeleton = type(stored.type.replace("\0", ""), (Skeleton,), {})()
    module.stored = stored
    held = vars(module)
    held.update({name: decode(value) for name, value in stored.attributes.items() if name not in held})
    held.update({name: _named(function) for name, function in stored.functions.items() if name not in held})
    for mine, theirs in ((module._parameters, stored.parameters), (module._buffers, stored.buffers)):
        mine.update({name: None if one is None else _parameter(one) for name, one in theirs.items()})
    return module


def _named(qualified: str) -> Any:
    def function() -> None:
        """Stand for a function that a trace knows by name only."""

    function.__qualname__ = qualified
    return function


def _parameter(stored: StoredParameter) -> Any:
    return torch.nn.Parameter(without_values(stored.shape or (), stored.dtype), requires_grad=False)
