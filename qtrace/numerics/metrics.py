"""Computes metrics from sums: pure formulas on Python numbers, with every edge case spelled out."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from qtrace.report.records import Statistics, Status

# The metrics to measure: "range" only the extremes, "seed" also mean and stddev, "all" also SQNR, cosine, relative L2.
Metrics = Literal["range", "seed", "all"]


class Sums(NamedTuple):
    """Extremes and sums of a pair (reference r, candidate c), over the `finite` pairs where both are finite.

    The noise is r - c and e = |r - c|. `low`, `high` are of r; `mean`, `min`, `max` of e; `squares` is the
    sum of (e - mean)². `noise`, `reference`, `candidate` are the sums of squares of r - c, r and c, and `product`
    is the sum of r·c. These four may be unset where fewer than "all" metrics were requested; for an equal pair they
    only say whether a side is zero. `pairs` counts all pairs, `unequal` those with r != c (only where integers or
    bools take part), `bad_*` the non-finite elements of a side.

    Values near the limits of float64 are multiplied by a power of two before they are summed: 2^`exponents`, for
    r, c and the noise in this order. `squares` and `noise` then carry the factor twice, `mean`, `min`, `max` once;
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


def statistics(sums: Sums, *, metrics: Metrics = "all", counted: bool = False) -> Statistics:
    """Return the metrics of a pair.

    With r, c, e = |r - c| over the pairs where both are finite, n their number:

        mean = sum(e) / n    stddev = sqrt(sum((e - mean)²) / n)    peir = max(e) / (max(r) - min(r))
        sqnr_db = 10 log10(sum(r²) / sum((r - c)²))    rel_l2 = sqrt(sum((r - c)²) / sum(r²))
        cosine = sum(r·c) / sqrt(sum(r²) sum(c²))

    Edges: an equal pair has peir 0 and rel_l2 0, sqnr_db None (infinite), cosine 1 (None if it is zero
    everywhere). An unequal pair with a constant reference has peir None and the status `constant_reference`; with a
    zero reference, rel_l2 and sqnr_db are None too. Without any finite pair all metrics are None. An empty pair is
    `compared`. A result beyond float64 is None.
    `mismatch`, the fraction of all elements that are unequal, is set if `counted`. Metrics that were not requested
    are None.
    """
    bad = (int(sums.bad_reference), int(sums.bad_candidate))
    non_finite = bad if any(bad) else None
    mismatch = sums.unequal / sums.pairs if counted and sums.pairs else None
    if not sums.finite:
        status = Status.NON_FINITE if non_finite else Status.COMPARED
        return Statistics(status=status, mismatch=mismatch, non_finite=non_finite)
    on_reference, _, on_noise = sums.exponents
    equal = sums.max == 0
    interval, on_interval = _interval(sums)
    status = Status.COMPARED if equal or interval else Status.CONSTANT_REFERENCE
    if non_finite:
        status = Status.NON_FINITE
    peir = 0.0 if equal else None
    if not equal and interval:
        peir = _number(_ratio(sums.max, on_noise, interval, on_interval))
    # The mean of equal numbers may be off by a rounding error, which would show here.
    stddev = 0.0 if sums.min == sums.max else math.sqrt(sums.squares / sums.finite)
    summed = equal or metrics != "range"
    sqnr_db = cosine = rel_l2 = None
    if metrics == "all":
        norm = math.sqrt(sums.reference)
        if equal:
            rel_l2, cosine = 0.0, 1.0 if norm else None
        else:
            if norm:
                rel_l2 = _number(_ratio(math.sqrt(sums.noise), on_noise, norm, on_reference))
            if norm and sums.noise:
                sqnr_db = _number(_decibel(sums.reference, on_reference, sums.noise, on_noise))
            if norm and sums.candidate:
                cosine = _number(sums.product / norm / math.sqrt(sums.candidate))
                cosine = cosine and max(-1.0, min(1.0, cosine))
    return Statistics(
        status=status,
        mean=_number(_ldexp(sums.mean, -on_noise)) if summed else None,
        min=_number(_ldexp(sums.min, -on_noise)),
        max=_number(_ldexp(sums.max, -on_noise)),
        stddev=_number(_ldexp(stddev, -on_noise)) if summed else None,
        peir=peir,
        sqnr_db=sqnr_db,
        cosine=cosine,
        rel_l2=rel_l2,
        mismatch=mismatch,
        non_finite=non_finite,
        reference_min=float(sums.low),
        reference_max=float(sums.high),
        elements=int(sums.finite),
    )


def _interval(sums: Sums) -> tuple[float, int]:
    """Return (m, k) with max(r) - min(r) = m·2^-k; halved first where float64 could not hold it."""
    interval = sums.high - sums.low
    return (interval, 0) if math.isfinite(interval) else (sums.high / 2 - sums.low / 2, -1)


def _ratio(above: float, on_above: int, below: float, on_below: int) -> float:
    """Return (above·2^-on_above) / (below·2^-on_below) without an intermediate number out of range."""
    m_above, k_above = math.frexp(above)
    m_below, k_below = math.frexp(below)
    return _ldexp(m_above / m_below, k_above - on_above - k_below + on_below)


def _decibel(signal: float, on_signal: int, noise: float, on_noise: int) -> float:
    """Return 10 log10 of the ratio of two sums of squares, each multiplied by its 2^(2·exponent)."""
    m_signal, k_signal = math.frexp(signal)
    m_noise, k_noise = math.frexp(noise)
    exponent = k_signal - k_noise + 2 * (on_noise - on_signal)
    return 10 * (math.log10(m_signal / m_noise) + exponent * math.log10(2))


def _number(x: float) -> float | None:
    """Return x, or None where the result is beyond float64: a record holds no Inf and no NaN."""
    return x if math.isfinite(x) else None


def _ldexp(x: float, exponent: int) -> float:
    """Return x·2^exponent, infinite where that is beyond float64."""
    if not exponent:
        return x
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.inf
