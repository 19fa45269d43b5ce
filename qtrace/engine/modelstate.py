"""What a model writes to itself while it runs: buffers that must be as before, weights that both sides share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch

from qtrace.engine.model import Model
from qtrace.tree import join

# Elements of a buffer that is copied in any case.
_SMALL = 1 << 16


@dataclass(frozen=True, slots=True)
class _Kept:
    """A buffer as it was: where it hangs, which tensor it is (None where there was none), and its values."""

    module: torch.nn.Module
    name: str
    buffer: torch.Tensor | None
    values: torch.Tensor | None


@contextlib.contextmanager
def buffers_kept(models: Sequence[Model]) -> Iterator[None]:
    """Restore, at the end, the buffers of modules in training mode (running means) and all small ones (counters).

    A large one of a module in eval mode is a table, which nobody writes, and is not copied. A buffer that was exchanged
    for another is hung back.
    """
    modules = {id(m): (m, path in model.in_training) for model in models for path, m in model.modules.items()}
    kept = [
        _Kept(module, name, buffer, buffer.detach().clone() if _is_copied(buffer, trains) else None)
        for module, trains in modules.values()
        if module._buffers
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for entry in kept:
            _restore(entry)


def _is_copied(buffer: torch.Tensor | None, trains: bool) -> TypeGuard[torch.Tensor]:
    return buffer is not None and not buffer.is_meta and (trains or buffer.numel() <= _SMALL)


class SharedTensors:
    """The parameters and buffers that lie in memory of both models, and how often they had been written so far."""

    def __init__(self, models: tuple[Model, Model]) -> None:
        first, second = (list(_named(model)) for model in models)
        mine = {address_of(tensor) for _, tensor in first} - {0}
        both = mine & {address_of(tensor) for _, tensor in second}
        self._versions = [
            (name, tensor, _version(tensor)) for name, tensor in (*first, *second) if address_of(tensor) in both
        ]

    def written(self) -> list[str]:
        """Return the names of those that have been written since, a name that both sides use once."""
        found = (name for name, tensor, version in self._versions if _version(tensor) != version)
        return list(dict.fromkeys(found))

    def warnings(self) -> list[str]:
        """Return the warning for what has been written since, if anything."""
        names = self.written()
        if not names:
            return []
        some = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        return [
            f"reference and candidate share {some}, which was written while they ran: "
            "each side may have computed with what the other wrote; give the candidate a copy"
        ]


def _named(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.modules.items():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None and not torch.nn.parameter.is_lazy(tensor):
                    yield join(path, name), tensor


def address_of(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's memory; 0 for one that has none, or does not tell."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _version(tensor: torch.Tensor) -> int | None:
    """Return how often a tensor was written; inference tensors do not count it."""
    return None if tensor.is_inference() else tensor._version


def _restore(kept: _Kept) -> None:
    buffer, values = kept.buffer, kept.values
    kept.module._buffers[kept.name] = buffer
    # The version counter would not tell: batch norm's kernel writes the running statistics past it.
    if buffer is None or values is None or buffer.is_meta or torch.equal(buffer, values):
        return
    # Outside inference mode, an inference tensor cannot be written.
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        buffer.copy_(values)
