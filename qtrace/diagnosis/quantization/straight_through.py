"""Makes rounding operators pass their input on, so that a quantized model computes what it would unrounded."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_ROUNDS = {aten.round.default, aten.round.decimals}
_ROUNDS_IN_PLACE = {aten.round_.default, aten.round_.decimals}
_BY_CHANNEL = aten.fake_quantize_per_channel_affine_cachemask.default
_FAKE = {
    aten.fake_quantize_per_tensor_affine_cachemask.default,
    _BY_CHANNEL,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default,
}
_CLAMPS = {aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default}
# Between a rounding and its clamp a zero point is added, or taken off.
_SHIFTS = {aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar}
_CASTS = {aten._to_copy.default, aten.to.dtype}
_CODES = (torch.int8, torch.uint8, torch.int16, torch.float8_e4m3fn, torch.float8_e5m2)
_MARK = "_qtrace_code"
_BEFORE = "_qtrace_before_clamp"


class Watcher(Protocol):
    """Is told of each quantizer that is passed by, with the values that it would round."""

    def quantizes(
        self,
        values: Tensor,
        scale: Tensor | float,
        zero_point: Tensor | float,
        levels: tuple[float, float],
        axis: int | None,
    ) -> None:
        """A fake quantizer with these scales was passed by."""

    def rounds(self) -> None:
        """Something was rounded by an operator that tells no scale."""

    def cuts(self, codes: Tensor, cut: Tensor) -> None:
        """Codes, which are in steps, were clamped."""


class StraightThrough(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode without rounding: it, its clamp, fake quantizers and casts to codes return their input.

    `count` is how many operators it passed by; `watcher` is told of them. What a model does with codes as integers it
    cannot follow: then the model raises, or computes something else.
    """

    def __init__(self, watcher: Watcher | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._watcher = watcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.where.self and hasattr(args[2], _MARK):
            # A clamp that is written as where(codes > end, end, codes).
            if self._watcher is not None:
                self._watcher.cuts(args[2], func(*args))
            return self._passed(args[2])
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if given is None or not given.is_floating_point():
            return func(*args, **(kwargs or {}))
        before = getattr(given, _BEFORE, None)
        if func in _ROUNDS and before is not None:
            # Some clamp first, so that the largest values lose half a step.
            if self._watcher is not None:
                self._watcher.rounds()
                self._watcher.cuts(before, given)
            return self._passed(before)
        if func in _ROUNDS or func in _ROUNDS_IN_PLACE:
            if self._watcher is not None:
                self._watcher.rounds()
            return self._passed(given, in_place=func in _ROUNDS_IN_PLACE)
        if func in _FAKE:
            if self._watcher is not None:
                axis = int(args[3]) if func is _BY_CHANNEL else None
                self._watcher.quantizes(given, args[1], args[2], (float(args[-2]), float(args[-1])), axis)
            return self._passed(given), torch.ones_like(given, dtype=torch.bool)
        if func in _CLAMPS and hasattr(given, _MARK):
            if self._watcher is not None:
                self._watcher.cuts(given, func(*args, **(kwargs or {})))
            return self._passed(given)
        if func in _CASTS and (kwargs or {}).get("dtype") in _CODES:
            return self._passed(given)
        found = func(*args, **(kwargs or {}))
        if func in _CLAMPS:
            setattr(found, _BEFORE, given)
        if func in _SHIFTS and hasattr(given, _MARK) and isinstance(found, Tensor):
            setattr(found, _MARK, True)
        return found

    def _passed(self, given: Tensor, *, in_place: bool = False) -> Tensor:
        self.count += 1
        found = given if in_place else given.clone()
        setattr(found, _MARK, True)
        return found
