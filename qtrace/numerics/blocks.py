"""Walking through a pair in blocks that stay in cache, and each thread's own scratch memory for them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch

# Block sizes are multiples of this, for the sake of rows and vector registers.
_ALIGNED = 512
# Models repeat few shapes; one that does not shall not make the views pile up.
_MOST_VIEWS = 256


class Scratch(threading.local):
    """Buffers that a thread uses again for every block; two threads never share one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self._views: dict[tuple[int, torch.dtype, tuple[int, ...]], torch.Tensor] = {}

    def take(self, slot: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a contiguous tensor of uninitialised memory; what the slot held before is overwritten."""
        view = self._views.get((slot, dtype, shape))
        if view is None:
            view = self._make(slot, dtype, shape)
        return view

    def _make(self, slot: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        # A tensor made in inference mode could not be written outside of it later.
        with torch.inference_mode(False):
            count = math.prod(shape)
            buffer = self._buffers.get((slot, dtype))
            if buffer is None or buffer.numel() < count:
                buffer = torch.empty(count, dtype=dtype, device="cpu")
                self._buffers[slot, dtype] = buffer
                self._views = {key: view for key, view in self._views.items() if key[:2] != (slot, dtype)}
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            view = self._views[slot, dtype, shape] = buffer[:count].view(shape)
        return view


def flat(reference: torch.Tensor, candidate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return both tensors as 1-D views in one common order of elements, or None where no view does it.

    Any order will do, as long as it is the same for both, since no statistic depends on it: two tensors that
    were transposed alike are read in the order in which they lie in memory.
    """
    if reference.is_contiguous() and candidate.is_contiguous():
        return reference.view(-1), candidate.view(-1)
    reference, candidate = reference.squeeze(), candidate.squeeze()
    strides = reference.stride()
    if strides != candidate.stride():
        return None
    order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
    reference = reference.permute(order)
    if not reference.is_contiguous():
        return None
    return reference.view(-1), candidate.permute(order).view(-1)


def blocks(reference: torch.Tensor, candidate: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield pairs of views of at most `size` elements that cover both tensors, contiguous where it can be."""
    small = reference.numel() <= size
    if small and reference.is_contiguous() and candidate.is_contiguous():
        yield reference, candidate
        return
    pair = flat(reference, candidate)
    if pair is not None:
        # Equal shares, so that the last block is no leftover that costs as many calls as a full one.
        share = -(-reference.numel() // -(-reference.numel() // size))
        share += -share % _ALIGNED
        yield from zip(torch.split(pair[0], share), torch.split(pair[1], share), strict=True)
    elif small:
        yield reference, candidate
    else:
        rows = reference.shape[0]
        step = max(1, size * rows // reference.numel())
        if step == 1:
            for one, other in zip(reference, candidate, strict=True):
                yield from blocks(one, other, size)
        else:
            yield from zip(torch.split(reference, step), torch.split(candidate, step), strict=True)
