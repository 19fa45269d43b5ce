"""Computes the sums by the fast path: float32 in blocks that stay in cache, float64 accumulation across blocks."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import aminmax, dot, sub
from torch.linalg import vector_norm

from qtrace.numerics.metrics import Metrics, Sums

# float32 holds every value of these dtypes, and their differences to within half a unit in the last place.
NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16})
# Neither float32 nor float64 holds all values of these dtypes.
WIDE = frozenset({torch.int64, torch.uint64})
INTEGERS = WIDE | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32}
# Not every version of torch has all of these.
FLOAT8 = frozenset(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
# Dtypes that can be measured without conversion.
READY = NARROW | INTEGERS | {torch.float64}

BLOCK = 1 << 20
# Block sizes are multiples of this, which suits rows and vector registers.
_ALIGNED = 512
# Models repeat few shapes. For a model that does not, this limits the number of cached views.
_MOST_VIEWS = 256

# Sums are computed by rows of one of these lengths, the best first. They are long enough to be fast and short enough
# to be accurate: torch adds squares up in as few as eight running float32 sums, and the rounding errors of equal
# squares add up too.
_ROWS = (*range(256, 63, -1), *range(257, 385))
# The norms of more rows than this are added up in float64.
_FEW = 512

# Below this mean square, float32 has lost digits of the squares.
_FAINT = 1e-36
# The largest sum of squares, in units of the sum of squares about the mean, that leaves enough digits.
_STEADY = 4.25
# The largest sum of sums of squares, in units of the product computed from them, that leaves enough digits.
_CANCELLED = 4.0

# Below this share of noise the cosine is 1 to within half of it: with q² = sum((r - c)²) / sum(r²), whatever
# the direction of the noise, 1 - cosine < q² / 2 / (1 - q)². The candidate's sum of squares is then not computed at
# all; the reference's is used in its place.
_FAITHFUL = 1e-6


class Scratch(threading.local):
    """Buffers that a thread reuses for every block; two threads never share one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self._views: dict[tuple[int, torch.dtype, tuple[int, ...]], torch.Tensor] = {}

    def take(self, slot: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a contiguous tensor of uninitialised memory; earlier contents of the slot are overwritten."""
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
    """Return both tensors as 1-D views in one common order of elements, or None where no such views exist.

    Any order will do, as long as it is the same for both, since no statistic depends on it. Two tensors that are
    transposed alike are read in memory order.
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
    """Yield pairs of views of at most `size` elements that cover both tensors, contiguous where possible."""
    small = reference.numel() <= size
    if small and reference.is_contiguous() and candidate.is_contiguous():
        yield reference, candidate
        return
    pair = flat(reference, candidate)
    if pair is not None:
        # Equal shares: a small last block would cost as many calls as a full one.
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


_scratch = Scratch()


def sums(reference: torch.Tensor, candidate: torch.Tensor, metrics: Metrics) -> Sums | None:
    """Return the sums that `metrics` need, of a pair of equal shape and `NARROW` dtypes on the CPU; None in doubt."""
    full = metrics == "all"
    pairs = reference.numel()
    counted = reference.dtype in INTEGERS or candidate.dtype in INTEGERS
    low, high, least, most = math.inf, -math.inf, math.inf, 0.0
    total = noise = signal = answer = 0.0
    unequal = 0
    agreeing = set()
    unread = set()
    for index, (r, c) in enumerate(_singles(reference, candidate)):
        lowest, highest = aminmax(r)
        low, high = min(low, lowest.item()), max(high, highest.item())
        e = sub(r, c, out=_scratch.take(0, torch.float32, r.shape)).abs_()
        nearest, farthest = aminmax(e)
        least, peak = min(least, nearest.item()), farthest.item()
        if not peak < math.inf:
            return None
        if peak == 0:
            # Most pairs are bit-identical: no more need be read unless another block differs.
            agreeing.add(index)
            continue
        most = max(most, peak)
        if counted:
            unequal += int(e.count_nonzero())
        if metrics == "range":
            continue
        shape = _rows(r.numel())
        # torch sums pairwise here, so no rows are needed; one call less saves time on small tensors.
        total += e.sum().item()
        here = _squares(e, shape)
        noise += here
        if full:
            strength = _squares(r, shape)
            signal += strength
            if here < _FAITHFUL * strength:
                unread.add(index)
                answer += strength
            else:
                answer += _squares(c, shape)
    if not most:
        # Without noise it only matters whether the sums of squares are zero.
        signal = answer = float(low != 0 or high != 0)
    elif full:
        for index, (r, _) in enumerate(_singles(reference, candidate) if agreeing else ()):
            if index in agreeing:
                again = _squares(r, _rows(r.numel()))
                signal += again
                answer += again
        if noise < _FAITHFUL * signal:
            answer = signal
        elif unread:
            # Another block is not faithful: now the candidate's own squares are needed.
            for index, (r, c) in enumerate(_singles(reference, candidate)):
                if index in unread:
                    shape = _rows(r.numel())
                    answer += _squares(c, shape) - _squares(r, shape)
    product = signal if noise < _FAITHFUL * signal else (signal + answer - noise) / 2
    squares = noise - total * (total / pairs)
    found = Sums(
        pairs, pairs, 0, 0, unequal, low, high, total / pairs, least, most, squares,
        noise, signal, answer, product,
    )  # fmt: skip
    return None if metrics != "range" and _in_doubt(found, full) else found


def _singles(reference: torch.Tensor, candidate: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Return the pair in contiguous float32 blocks: views where the data is that already, else scratch copies."""
    if (
        reference.dtype is torch.float32 is candidate.dtype
        and reference.is_contiguous()
        and candidate.is_contiguous()
        and reference.numel() <= BLOCK
    ):
        return ((reference, candidate),)
    return ((_single(one, 1), _single(other, 2)) for one, other in blocks(reference, candidate, BLOCK))


def _single(block: torch.Tensor, slot: int) -> torch.Tensor:
    if block.dtype is torch.float32 and block.is_contiguous():
        return block
    return _scratch.take(slot, torch.float32, block.shape).copy_(block)


@lru_cache(maxsize=1024)
def _rows(count: int) -> tuple[int, int]:
    """Return number and length of the rows into which `count` elements are cut; (0, 0) if no length fits."""
    return next(((count // row, row) for row in _ROWS if count % row == 0), (0, 0))


def _squares(x: torch.Tensor, shape: tuple[int, int]) -> float:
    """Return the sum of squares of a contiguous float32 tensor that is cut into rows of `shape`."""
    if shape[0]:
        norms = vector_norm(x.view(shape), 2, 1)
        norms = norms.double() if shape[0] > _FEW else norms
        return float(vector_norm(norms).item()) ** 2
    x = x.view(-1)
    rest = x.numel() % _ROWS[0]
    tail = x[-rest:]
    return dot(tail, tail).item() + (_squares(x[:-rest], _rows(x.numel() - rest)) if rest < x.numel() else 0)


def _in_doubt(found: Sums, full: bool) -> bool:
    """Return whether a relative error beyond 1e-6 cannot be excluded."""
    if not found.max:
        return False
    faint = found.pairs * _FAINT
    if not (faint < found.noise < math.inf and found.noise < _STEADY * found.squares):
        return True
    if not full:
        return False
    if not (faint < found.reference < math.inf and faint < found.candidate < math.inf):
        return True
    if found.reference + found.candidate + found.noise > _CANCELLED * abs(found.product):
        return True
    return 0.25 < found.reference / found.noise < 4.0
