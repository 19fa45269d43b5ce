"""The torch state of one side, saved and restored wherever it is suspended.

Two models that take turns in one thread also share that thread's state: a forward that is suspended inside
`torch.autocast` would leak it into the other model. So a side takes its own state away with it. What belongs to it:
grad mode, inference mode, autocast, the stacks of function and dispatch modes, the random generator, and the
process-wide switches that torch's context managers flip (`sdpa_kernel`, `set_default_dtype`, …). Context
variables are kept apart by greenlet itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import _C
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

# Switches as (read, write). What a build of torch does not have is left out.
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


class SideState:
    """Takes one side's torch state away at `suspend` and brings it back at `resume`.

    Both are called on the side's own stack, directly around the switch; between them the state is the one that
    stood when the object was made (the driver's). With `own_random` off the random generator is left alone.
    """

    def __init__(self, devices: tuple[str, ...] = ("cpu",), *, own_random: bool = True) -> None:
        self._devices = devices
        self._switches = _switches()
        self._reads = tuple(read for read, _ in self._switches)
        self._base_depths = (_C._len_torch_function_stack(), _C._len_torch_dispatch_stack())
        self._base = self._read()
        self._saved: tuple[Any, ...] | None = None
        self._away: Any = None
        self._function_modes: list[Any] = []
        self._dispatch_modes: list[Any] = []
        self._own_random = own_random
        self._base_rng = torch.get_rng_state()
        self._rng = self._base_rng
        self._device_rng: list[Any] = []

    def suspend(self) -> None:
        """Save the side's state and put the driver's in its place."""
        # Modes come off first: while one is active, even reading the state may be routed through it.
        depths = (_C._len_torch_function_stack(), _C._len_torch_dispatch_stack())
        if depths != self._base_depths:
            self._function_modes = [
                pop_function_mode()  # type: ignore[no-untyped-call]
                for _ in range(depths[0] - self._base_depths[0])
            ]
            self._dispatch_modes = [pop_dispatch_mode() for _ in range(depths[1] - self._base_depths[1])]
        if self._own_random:
            self._rng = torch.get_rng_state()
            if "cuda" in self._devices:
                self._device_rng = torch.cuda.get_rng_state_all()
        now = self._read()
        if now == self._base:
            self._saved = None
            return
        self._saved = now
        if now[1] != self._base[1]:
            # The guard remembers the side's whole autograd state and gives it back when it exits, so it lives
            # exactly while the side is away.
            self._away = _C._InferenceMode(self._base[1])
            self._away.__enter__()
        self._write(self._base)

    def resume(self) -> None:
        """Put the side's state back."""
        if self._own_random:
            torch.set_rng_state(self._rng)
            if self._device_rng:
                torch.cuda.set_rng_state_all(self._device_rng)
        if self._saved is not None:
            if self._away is not None:
                self._away.__exit__(None, None, None)
                self._away = None
            self._write(self._saved)
        while self._dispatch_modes:
            push_dispatch_mode(self._dispatch_modes.pop())
        while self._function_modes:
            push_function_mode(self._function_modes.pop())  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Give the side the random state that stood when this object was made: both sides then draw the same."""
        if self._own_random:
            torch.set_rng_state(self._base_rng)

    def _read(self) -> tuple[Any, ...]:
        autocast: tuple[Any, ...] = ()
        if _C._is_any_autocast_enabled():
            autocast = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in self._devices)
            autocast += (torch.is_autocast_cache_enabled(),)
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            autocast,
            *[read() for read in self._reads],
        )

    def _write(self, wanted: tuple[Any, ...]) -> None:
        torch.set_grad_enabled(wanted[0])
        if wanted[2]:
            for device, (enabled, dtype) in zip(self._devices, wanted[2], strict=False):
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
            torch.set_autocast_cache_enabled(wanted[2][-1])
        else:
            for device in self._devices:
                torch.set_autocast_enabled(device, False)
        now = self._read()[3:]
        for (_, write), value, current in zip(self._switches, wanted[3:], now, strict=True):
            if value != current:
                write(value)
