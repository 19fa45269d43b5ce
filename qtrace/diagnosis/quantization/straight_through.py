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
_HALF = 0.5 + 1e-3
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
        self._written: list[Tensor] = []
        self._watcher = watcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.where.self and hasattr(args[2], _MARK) and _is_clamp(*args):
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
            # What comes out are values: a clamp or a mask behind it is the model's own.
            return self._passed(given, is_code=False), torch.ones_like(given, dtype=torch.bool)
        if func in _CLAMPS and hasattr(given, _MARK):
            if self._watcher is not None:
                self._watcher.cuts(given, func(*args, **(kwargs or {})))
            return self._passed(given)
        if func in _CASTS and (kwargs or {}).get("dtype") in _CODES:
            codes = func(*args, **(kwargs or {}))
            # Behind a rounding the cast changes nothing; by itself it cuts off, and is no rounding.
            return self._passed(given) if hasattr(given, _MARK) or _is_nearest(given, codes) else codes
        found = func(*args, **(kwargs or {}))
        if func in _CLAMPS:
            setattr(found, _BEFORE, given)
        if func in _SHIFTS and hasattr(given, _MARK) and isinstance(found, Tensor):
            setattr(found, _MARK, True)
        return found

    def __exit__(self, *error: Any) -> None:
        for tensor in self._written:
            if hasattr(tensor, _MARK):
                delattr(tensor, _MARK)
        self._written.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _passed(self, given: Tensor, *, in_place: bool = False, is_code: bool = True) -> Tensor:
        self.count += 1
        found = given if in_place else given.clone()
        if is_code:
            setattr(found, _MARK, True)
            if in_place:
                # It may be the model's own tensor.
                self._written.append(found)
        return found


def _is_clamp(where: Tensor, end: Any, codes: Tensor) -> bool:
    """Return whether `where` replaces all codes beyond an end by that end, and no others."""
    if not isinstance(end, Tensor) or end.numel() != 1:
        return False
    inside = torch.where(where, end, codes)
    return bool((inside <= end).all() and (codes >= inside).all()) or bool(
        (inside >= end).all() and (codes <= inside).all()
    )


def _is_nearest(given: Tensor, codes: Tensor) -> bool:
    """Return whether a cast takes each value to a code next to it; floats have codes that are far apart."""
    if codes.dtype.is_floating_point:
        return True
    return bool(((given - codes.to(given.dtype)).abs() <= _HALF).all())
