"""The fast path: float32 in blocks that stay in cache, with float64 accumulation across blocks.

It gives up, by returning None, wherever float32 within a block might cost more than a relative error of
1e-6: the caller then turns to `exact`. What it doubts, and why:

- anything that is not finite, be it in the data or by overflow (mask fills of -3.4e38);
- squares so small that float32 loses their digits;
- a stddev that is small beside the mean of |r - c|, since it is the small difference of two large sums;
- a cosine near 0 and an SQNR near 0 dB, where the digits cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import aminmax, dot, sub
from torch.linalg import vector_norm

from qtrace.numerics.blocks import Scratch, blocks
from qtrace.numerics.dtypes import INTEGERS
from qtrace.numerics.metrics import Metrics
from qtrace.numerics.sums import Sums

# Sums are taken by rows of one of these lengths, the best first: long enough to be fast, short enough to be
# accurate, since torch adds squares up in as few as eight running float32 sums, and the roundings of equal
# ones add up too.
_ROWS = (*range(256, 63, -1), *range(257, 385))
# The norms of more rows than this are added up in float64.
_FEW = 512
BLOCK = 1 << 20

# A mean square below this is made of squares of which float32 has lost digits.
_FAINT = 1e-36
# The largest sum of squares, in units of the sum of squares about the mean, that leaves enough digits.
_STEADY = 4.25
# The largest sum of sums of squares, in units of the product that comes out of them, that leaves enough digits.
_CANCELLED = 4.0

# Below this share of noise the cosine is 1 to within half of it: with q² = sum((r - c)²) / sum(r²), whatever
# the direction of the noise, 1 - cosine < q² / 2 / (1 - q)². The candidate's sum of squares is then not read at
# all, and taken for the reference's.
_FAITHFUL = 1e-6

_scratch = Scratch()


def sums(reference: torch.Tensor, candidate: torch.Tensor, metrics: Metrics) -> Sums | None:
    """Return the sums of a pair of equal shape and `NARROW` dtypes on the CPU that `metrics` need, None in doubt."""
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
            # Most pairs agree to the bit: nothing more is worth reading unless another block differs.
            agreeing.add(index)
            continue
        most = max(most, peak)
        if counted:
            unequal += int(e.count_nonzero())
        if metrics == "range":
            continue
        shape = _rows(r.numel())
        # torch adds up pairwise here: no rows needed, and a call saved is time saved on small tensors.
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
        # Of the sums of squares only whether they are zero matters where there is no noise.
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
            # Another block is not faithful: now the candidate's own squares count.
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
    """Return the pair in contiguous float32 blocks: views where it is that already, else scratch copies."""
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
    """Return number and length of the rows into which so many elements are cut, (0, 0) if none fits."""
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
    """Tell whether a relative error beyond 1e-6 cannot be excluded."""
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
