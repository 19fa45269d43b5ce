"""While a candidate is made the reference must stay what it is, and so must the process that both run in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import nn

from qtrace.errors import SourceError


@contextlib.contextmanager
def reference_untouched(reference: nn.Module, source: str) -> Iterator[None]:
    """Refuse what `source` does inside to the reference itself: it would then be compared with what was made of it.

    Raises:
        SourceError: another tensor, or values that were written to, or other modules or hooks; one is named.
    """
    before = _state(reference)
    yield
    after = _state(reference)
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise SourceError(
            f"{source} changed the reference itself ({changed[0] or '<root>'}{more}), so there is nothing left to "
            "compare with; give it a parameter reference, and it gets a copy"
        )


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Put back what holds for the whole process and decides what either model computes: default dtype and device, …

    Also whether gradients are kept, whether operators must be deterministic, and the current folder.
    """
    folder, dtype, device = os.getcwd(), torch.get_default_dtype(), torch.get_default_device()
    grad, strict = torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(strict, warn_only=warns_only)
        os.chdir(folder)


def _state(model: nn.Module) -> dict[str, object]:
    """Return, by path, what tells that a tensor or a module was exchanged, written to or hooked."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        found[path] = (id(module), type(module), hooks, id(vars(module).get("forward")))
        # What is not saved with a model, such as rotary frequencies, it may make anew whenever it runs.
        saved = {
            name: value for name, value in module._buffers.items() if name not in module._non_persistent_buffers_set
        }
        for name, tensor in {**module._parameters, **saved}.items():
            if tensor is not None:
                version = None if tensor.is_inference() else tensor._version
                found[f"{path}.{name}" if path else name] = (id(tensor), version, _address(tensor))
    return found


def _address(tensor: torch.Tensor) -> int:
    """Return where a tensor's values are: `parameter.data = …` changes nothing else."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        # A subclass, or a tensor without values of its own.
        return 0
