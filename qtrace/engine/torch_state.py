"""Saves and restores the torch state of one side wherever the side is suspended.

Two models that take turns in one thread also share that thread's state: a forward that is suspended inside
`torch.autocast` would leak it into the other model. So the state of a side is removed while the side is suspended:
grad mode, inference mode, autocast, the stacks of function and dispatch modes, the random generator, and the
process-wide switches that torch's context managers flip (`sdpa_kernel`, `set_default_dtype`, …). Greenlet itself
separates context variables.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import _C
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

# Process-wide switches as (read, write). Those that a build of torch does not have are left out.
_SWITCH_NAMES: tuple[tuple[str, str], ...] = (
    ("_get_flash_sdp_enabled", "_set_sdp_use_flash"),
    ("_get_mem_efficient_sdp_enabled", "_set_sdp_use_mem_efficient"),
    ("_get_math_sdp_enabled", "_set_sdp_use_math"),
    ("_get_cudnn_sdp_enabled", "_set_sdp_use_cudnn"),
    ("_get_mkldnn_enabled", "_set_mkldnn_enabled"),
    ("_get_cudnn_enabled", "_set_cudnn_enabled"),
    ("_get_cudnn_benchmark", "_set_cudnn_benchmark"),
    ("_get_cudnn_deterministic", "_set_cudnn_deterministic"),
    ("_get_float32_matmul_precision", "_set_float32_matmul_precision"),
)

Switch = tuple[Callable[[], Any], Callable[[Any], None]]


def _switches() -> tuple[Switch, ...]:
    named = [(getattr(_C, read, None), getattr(_C, write, None)) for read, write in _SWITCH_NAMES]
    own: list[Switch] = [(torch.get_default_dtype, torch.set_default_dtype)]
    return tuple(own + [(read, write) for read, write in named if read is not None and write is not None])


_SWITCHES = _switches()
# These are called at every entry and exit of every module, so that it pays to look them up only once.
_READS = (
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,
    _C._is_any_autocast_enabled,
    _C._len_torch_function_stack,
    _C._len_torch_dispatch_stack,
    *(read for read, _ in _SWITCHES),
)


class RandomState:
    """All the generators that a forward may draw from: torch's, the accelerators', Python's and numpy's."""

    def __init__(self, devices: tuple[str, ...] = ("cpu",)) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if "cuda" in devices else []
        self._python = random.getstate()
        self._numpy = np.random.get_state()

    def restore(self) -> None:
        """Put the generators back to where they stood."""
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        np.random.set_state(self._numpy)

    def equals(self, other: RandomState) -> bool:
        """Return whether no random number was drawn between the two."""
        numpy = all(np.array_equal(a, b) for a, b in zip(self._numpy, other._numpy, strict=True))
        cuda = all(torch.equal(a, b) for a, b in zip(self._cuda, other._cuda, strict=True))
        return torch.equal(self._torch, other._torch) and self._python == other._python and numpy and cuda


class SideState:
    """Saves and removes one side's torch state at `suspend`, and restores it at `resume`.

    Both are called on the side's own stack, directly around the switch; between them the state is the one that
    was current when the object was made (the driver's). `random` is where the side's random generators begin; without
    it the generators are not touched.
    """

    def __init__(self, devices: tuple[str, ...] = ("cpu",), *, random: RandomState | None = None) -> None:
        self._devices = devices
        self._random = random
        self._base = [read() for read in _READS]
        self._base_autocast = self._autocast()
        self._disturbed = False
        self._saved: list[Any] = []
        self._saved_autocast: list[Any] = []
        self._away: Any = None
        self._function_modes: list[Any] = []
        self._dispatch_modes: list[Any] = []

    def begin(self) -> None:
        """Set the random generators to where the side's begin."""
        if self._random is not None:
            self._random.restore()

    def drew_from(self, random: RandomState) -> bool:
        """Return whether the side's random generators have moved; False where they are not its own."""
        return self._random is not None and not self._random.equals(random)

    def suspend(self) -> None:
        """Save the side's state and set the driver's in its place."""
        if self._random is not None:
            self._random = RandomState(self._devices)
        if self._base != [read() for read in _READS]:
            self._take_away()

    def resume(self) -> None:
        """Restore the side's state."""
        if self._random is not None:
            self._random.restore()
        if self._disturbed:
            self._bring_back()

    def _take_away(self) -> None:
        # Modes are removed first: while one is active, even reading the state may be routed through it.
        functions = _C._len_torch_function_stack() - self._base[3]
        dispatches = _C._len_torch_dispatch_stack() - self._base[4]
        self._function_modes = [
            pop_function_mode()  # type: ignore[no-untyped-call]
            for _ in range(functions)
        ]
        self._dispatch_modes = [pop_dispatch_mode() for _ in range(dispatches)]
        self._saved = [read() for read in _READS]
        self._saved_autocast = self._autocast()
        self._disturbed = True
        if self._saved[1] != self._base[1]:
            # The guard saves the side's whole autograd state and restores it when it exits, so it exists
            # exactly while the side is suspended.
            self._away = _C._InferenceMode(self._base[1])
            self._away.__enter__()
        self._write(self._base, self._base_autocast)

    def _bring_back(self) -> None:
        self._disturbed = False
        if self._away is not None:
            self._away.__exit__(None, None, None)
            self._away = None
        self._write(self._saved, self._saved_autocast)
        while self._dispatch_modes:
            push_dispatch_mode(self._dispatch_modes.pop())
        while self._function_modes:
            push_function_mode(self._function_modes.pop())  # type: ignore[no-untyped-call]

    def _autocast(self) -> list[Any]:
        each: list[Any] = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in self._devices]
        return [*each, torch.is_autocast_cache_enabled()]

    def _write(self, wanted: list[Any], autocast: list[Any]) -> None:
        torch.set_grad_enabled(wanted[0])
        for device, (enabled, dtype) in zip(self._devices, autocast[:-1], strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(autocast[-1])
        for (read, write), value in zip(_SWITCHES, wanted[5:], strict=True):
            if read() != value:
                write(value)
