"""How far apart two tensors may be and still agree: the rounding noise of a correct candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch

# Rounding errors of many calls add up like a random walk; each is about a quarter of eps against the interval of
# its tensor. Sixteen times that leaves room for layers that amplify.
_STEPS = 4.0
# Beyond this no number of roundings is an excuse.
_MOST = 0.02


def rounding_tolerance(dtypes: Iterable[torch.dtype], depth: int) -> float:
    """Return the PEIR up to which tensors of these dtypes agree, `depth` calls after the inputs.

    4 eps sqrt(1 + depth), eps that of the coarsest floating dtype among them, at most 0.02; without any
    floating dtype that of float32, since integers (token ids, masks) are made from exact values or from float32
    ones.
    """
    return min(_STEPS * _coarsest_eps(tuple(dtypes)) * math.sqrt(1 + depth), _MOST)


@lru_cache(maxsize=256)
def _coarsest_eps(dtypes: tuple[torch.dtype, ...]) -> float:
    return max((torch.finfo(t).eps for t in dtypes if t.is_floating_point), default=torch.finfo(torch.float32).eps)
