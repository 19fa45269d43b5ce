"""The same values up to one factor: what remains of a scale that was folded into a weight."""

from __future__ import annotations

import math
from typing import Any

import torch

from qtrace.numerics.measurement import measure
from qtrace.numerics.relations.elements import MOST, loose, near, sampled, typical
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import Relation, Statistics

# Only tensors that point the same way, and still differ by more than rounding, are worth a second look.
_SAME_DIRECTION = 0.999
VISIBLE = 1e-3
# Where the factor is taken out, what remains must be rounding, of a depth that any model has.
_DEPTH = 100
_UNEXPLAINED = 0.25
_LEFT_OVER = 0.25
_BLOCK = 1 << 20


def gain_relation(reference: torch.Tensor, candidate: torch.Tensor, found: Statistics) -> Relation | None:
    """Return the relation "gain" where candidate = factor x reference up to rounding, else None.

    Args:
        reference: any shape, floating.
        candidate: the same shape, floating.
        found: the pair's statistics; they tell at no cost whether it is worth looking.

    The factor is <r, c> / <r, r>. `parameters` are {"factor": …} and, where it is a simple one, its name
    ("1/sqrt(32)"); `error` is the PEIR of candidate / factor against the reference.
    """
    if found.cosine is None or found.peir is None or found.non_finite is not None:
        return None
    rounding = rounding_tolerance((reference.dtype, candidate.dtype), _DEPTH)
    if not (abs(found.cosine) > _SAME_DIRECTION and found.peir > max(VISIBLE, rounding)) or _is_left_over(found):
        return None
    first, second = reference.detach().reshape(-1), candidate.detach().to(reference.device).reshape(-1)
    factor = _factor(first, second)
    if factor == 0 or not math.isfinite(factor):
        return None
    working = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    error = measure(first, second.to(working) / factor).result().peir
    # A coarse dtype's tolerance also has room for a fault: the factor must be what makes the difference.
    if error is None or not error <= min(rounding, found.peir * _UNEXPLAINED):
        return None
    few, others = sampled(first).to(working), sampled(second).to(working) / factor
    if float(near(others, few, loose(rounding), typical(few)).double().mean()) < MOST:
        return None
    parameters: dict[str, Any] = {"factor": factor}
    name = _simple_name(factor)
    if name is not None:
        parameters["name"] = name
    return Relation("gain", parameters, error)


def _is_left_over(found: Statistics) -> bool:
    """Return whether more than half of the difference, in L2, stays once the best factor is taken out.

    With s = ||c|| / ||r||, what stays is s² (1 - cosine²), against rel_l2² = 1 + s² - 2 s cosine.
    """
    if found.cosine is None or not found.rel_l2:
        return False
    square = found.cosine**2
    size = abs(found.cosine) + math.sqrt(max(0.0, square - 1 + found.rel_l2**2))
    if found.rel_l2 < 1 and found.cosine > 0:
        # Of the two solutions the smaller s leaves less.
        size = min(size, abs(found.cosine) - math.sqrt(max(0.0, square - 1 + found.rel_l2**2)))
    return size**2 * (1 - square) > _LEFT_OVER * found.rel_l2**2


def _factor(first: torch.Tensor, second: torch.Tensor) -> float:
    product = energy = 0.0
    for r, c in zip(torch.split(first, _BLOCK), torch.split(second, _BLOCK), strict=True):
        r, c = r.double(), c.double()
        product += float(r.dot(c))
        energy += float(r.dot(r))
    return product / energy if energy else math.nan


def _simple_name(factor: float) -> str | None:
    """Return factors that people fold by their names: n, 1/n, sqrt(n), 1/sqrt(n), with a sign.

    >>> _simple_name(0.1767767), _simple_name(-0.125), _simple_name(0.3)
    ('1/sqrt(32)', '-1/8', None)
    """
    sign, size = ("-" if factor < 0 else ""), abs(factor)
    for power, plain in ((1, "{}"), (2, "sqrt({})")):
        for value, form in ((size**power, plain), (size**-power, "1/" + plain)):
            whole = round(value)
            if 1 <= whole <= 16384 and abs(value - whole) < 1e-5 * whole:
                return sign + form.format(whole)
    return None
