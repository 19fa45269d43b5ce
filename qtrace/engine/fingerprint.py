"""Whether two runs returned the same bits, without keeping what they returned."""

from __future__ import annotations

from typing import Any

import torch

from qtrace.numerics import NoValues, plain
from qtrace.tree import PLAIN, leaves

_PARTS = 256
_WORD = 8


class Fingerprint:
    """The bits of a nested value in some 260 integers per tensor; equal values have equal fingerprints.

    Each tensor is read once, as integers of 64 bits, and summed in 256 stretches modulo 2^64. Other values give
    other sums but for a chance of about 2^-64, or where the same words only change places within one stretch. On an
    accelerator the sums stay there until two fingerprints are compared.
    """

    def __init__(self, value: Any) -> None:
        self._plain: dict[str, object] = {}
        self._sums: dict[str, torch.Tensor] = {}
        for path, leaf in leaves(value):
            if isinstance(leaf, torch.Tensor):
                self._plain[path] = (tuple(leaf.shape), leaf.dtype) if not leaf.is_nested else leaf.dtype
                try:
                    self._sums[path] = _sums(plain(leaf))
                except NoValues:
                    continue
            elif isinstance(leaf, PLAIN):
                # As text, so that NaN is itself.
                self._plain[path] = repr(leaf)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        if self._plain != other._plain or self._sums.keys() != other._sums.keys():
            return False
        return all(torch.equal(sums, other._sums[path]) for path, sums in self._sums.items())

    __hash__ = None  # type: ignore[assignment]


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sums of a tensor's bits, in the order in which they lie in memory."""
    # A transposed tensor need not be copied: its axes are taken as they lie.
    strides = tensor.stride()
    axes = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    data = tensor.permute(axes).contiguous().reshape(-1).view(torch.uint8)
    if data.storage_offset() % _WORD:
        data = data.clone()
    whole = len(data) // _WORD * _WORD
    words = data[:whole].view(torch.int64)
    even = len(words) // _PARTS * _PARTS
    rest = torch.stack((words[even:].sum(), data[whole:].sum()))
    return torch.cat((words[:even].view(_PARTS, -1).sum(1), rest)) if even else rest
