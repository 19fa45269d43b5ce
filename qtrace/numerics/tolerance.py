"""Computes how far apart two tensors may be and still agree: the rounding noise of a correct candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch

# Rounding errors of many calls add up like a random walk; each is about a quarter of eps relative to the interval of
# its tensor. Sixteen times that leaves room for layers that amplify.
_STEPS = 4.0
# No number of roundings explains a PEIR above this.
_MOST = 0.02
# The measured noise is that of one run. The candidate has noise of its own, of a different size at each element.
_MARGIN = 4.0
# One tensor of one call: module path, call index, and "in:" or "out:" with the path of the value.
Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Floors:
    """The PEIR up to which tensors agree, place by place.

    `tolerance` is the user's own limit and overrides all others. A PEIR up to `least` counts as rounding noise in any
    case. `measured` is the reference's own noise at each place, as a PEIR, where the reference was run a second time
    (see `qtrace.tracing.noise_floor`); it replaces the estimate of `rounding_tolerance`.
    """

    tolerance: float | None = None
    least: float = 0.0
    measured: Mapping[Place, float] = field(default_factory=dict)

    def of(self, dtypes: tuple[torch.dtype, ...], depth: int, place: Place | None = None) -> float:
        """Return the limit for tensors of these dtypes, `depth` calls after the inputs.

        Where the noise was measured, the limit is max(4 eps, 4 n e / eps32). Here n is the noise of the reference, eps
        that of the coarsest dtype, and e / eps32 says how much coarser than float32 that dtype is. Elsewhere the limit
        is `rounding_tolerance`.
        """
        if self.tolerance is not None:
            return self.tolerance
        noise = self.measured.get(place) if place is not None else None
        if noise is None:
            return max(rounding_tolerance(dtypes, depth), self.least)
        eps = coarsest_eps(dtypes)
        coarser = max(1.0, eps / torch.finfo(torch.float32).eps)
        return max(_STEPS * eps, _MARGIN * noise * coarser, self.least)


def rounding_tolerance(dtypes: Iterable[torch.dtype], depth: int) -> float:
    """Return the PEIR up to which tensors of these dtypes agree, `depth` calls after the inputs.

    The limit is 4 eps sqrt(2 + depth), at most 0.02, with eps that of the coarsest floating dtype among them: the first
    call already sums over its inputs in an order of its own, which is a step more. Without a floating dtype, eps is
    that of float32, since integers (token ids, masks) are made from exact values or from float32 ones.
    """
    return min(_STEPS * coarsest_eps(tuple(dtypes)) * math.sqrt(2 + depth), _MOST)


@lru_cache(maxsize=256)
def coarsest_eps(dtypes: tuple[torch.dtype, ...]) -> float:
    """Return eps of the coarsest floating dtype among these; that of float32 where there is none."""
    return max((torch.finfo(t).eps for t in dtypes if t.is_floating_point), default=torch.finfo(torch.float32).eps)
