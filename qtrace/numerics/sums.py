"""What one pass over a pair leaves behind: the few numbers from which every metric follows."""

from __future__ import annotations

import math
from typing import NamedTuple


class Sums(NamedTuple):
    """Extremes and sums of a pair (reference r, candidate c), over the `finite` pairs where both are finite.

    The noise is r - c and e = |r - c|. `low`, `high` are of r; `mean`, `min`, `max` of e; `squares` is the
    sum of (e - mean)². `noise`, `reference`, `candidate` are the sums of squares of r - c, r and c, `product`
    the sum of r·c; these four need not be there where only the seed's metrics were asked for, and in an equal
    pair say no more than whether a side is zero. `pairs` counts all pairs, `unequal` those with r != c (only
    where integers or bools take part), `bad_*` the non-finite elements of a side.

    Values at the far ends of float64 are summed after a multiplication by a power of two, 2^`exponents` of
    r, c and the noise in this order: `squares` and `noise` then carry it twice, `mean`, `min`, `max` once;
    `low` and `high` are always the tensor's own.
    """

    pairs: float = 0
    finite: float = 0
    bad_reference: float = 0
    bad_candidate: float = 0
    unequal: float = 0
    low: float = math.inf
    high: float = -math.inf
    mean: float = 0.0
    min: float = math.inf
    max: float = 0.0
    squares: float = 0.0
    noise: float = 0.0
    reference: float = 0.0
    candidate: float = 0.0
    product: float = 0.0
    exponents: tuple[int, int, int] = (0, 0, 0)


def merge(one: Sums, other: Sums) -> Sums:
    """Return the sums of two disjoint parts of one pair; variances are merged with Chan's formula.

    Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    Both parts must have been summed with the same `exponents`.
    """
    finite = one.finite + other.finite
    if not one.finite or not other.finite:
        mean = one.mean if one.finite else other.mean
        squares = one.squares + other.squares
    else:
        step = other.mean - one.mean
        mean = one.mean + step * (other.finite / finite)
        squares = one.squares + other.squares + step * step * (one.finite * other.finite / finite)
    return Sums(
        one.pairs + other.pairs,
        finite,
        one.bad_reference + other.bad_reference,
        one.bad_candidate + other.bad_candidate,
        one.unequal + other.unequal,
        min(one.low, other.low),
        max(one.high, other.high),
        mean,
        min(one.min, other.min),
        max(one.max, other.max),
        squares,
        one.noise + other.noise,
        one.reference + other.reference,
        one.candidate + other.candidate,
        one.product + other.product,
        one.exponents,
    )
