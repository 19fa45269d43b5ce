"""The same tokens scaled per channel, then rotated: where a norm's weight was folded away before a rotation."""

from __future__ import annotations

import math

import torch

from qtrace.numerics.measurement import measure
from qtrace.numerics.relations.channels import each_its_own
from qtrace.numerics.relations.difference import Difference, difference_of
from qtrace.numerics.relations.elements import picks
from qtrace.numerics.relations.gain import VISIBLE
from qtrace.numerics.relations.rotation import rotation_relation
from qtrace.report.records import Relation

# The scales are the solution of as many equations as there are channels: dear beyond this.
_MOST_CHANNELS = 1024
# So many inner products per scale: fewer would be fitted by scales that mean nothing.
_SURPLUS = 4
# Keeps the equations solvable where channels are all but copies of each other.
_RIDGE = 1e-13
# Squared scales below zero by more than this share of the largest are no scales.
_NEGATIVE = 1e-3


def rescaled_relation(difference: Difference) -> Relation | None:
    """Return the relation "rotation" where candidate = (scale of the channel x reference) Q, Q orthogonal, else None.

    Then the Gram matrices of the tokens agree: R D² Rᵀ = C Cᵀ, which is linear in D². Its least squares solution is
    that of (RᵀR ∘ RᵀR) d² = diag(Rᵀ C Cᵀ R), and R D must be related to C by a rotation on all tokens.
    More than half of the scales must differ from 1 and from the median one: few of them are a damaged weight.
    At least four inner products per channel are needed, and at most 1024 channels are looked at. `parameters` are
    {"axis": -1, "tokens", "min", "max"}, min and max over the scales; `error` is that of the rotation.
    """
    channels = difference.reference.shape[-1]
    tokens = difference.reference.numel() // channels
    if not 2 <= channels <= _MOST_CHANNELS or not difference.visible or difference.exact:
        return None
    first, second = (x.reshape(-1, channels) for x in (difference.reference, difference.candidate))
    # n tokens have n (n + 1) / 2 inner products; more of them than needed make the sums dearer and tell no more.
    needed = math.ceil(math.sqrt(2 * _SURPLUS * channels))
    if tokens < needed:
        return None
    chosen = picks(tokens, needed, first.device)
    scales = _scales(first[chosen].double(), second[chosen].double())
    if scales is None or not each_its_own(scales, max(VISIBLE, difference.limit)):
        return None
    scaled = difference.reference * scales.to(difference.reference.dtype)
    rest = difference_of(scaled, difference.candidate, measure(scaled, difference.candidate).result())
    relation = rotation_relation(rest) if rest is not None else None
    if relation is None:
        return None
    parameters = {**relation.parameters, "min": float(scales.min()), "max": float(scales.max())}
    return Relation("rotation", parameters, relation.error)


def _scales(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor | None:
    """Return the scale of each channel with which the Gram matrices of the tokens agree best."""
    # In units of each channel's own size, or faint channels would have no say.
    sizes = r.norm(dim=0)
    if not bool((sizes > 0).all()):
        return None
    r = r / sizes
    equations = (r.T @ r).square_()
    equations.diagonal().add_(_RIDGE)
    factor, failed = torch.linalg.cholesky_ex(equations)
    if int(failed):
        return None
    wanted = (c.T @ r).square_().sum(0)
    squares = torch.cholesky_solve(wanted[:, None], factor)[:, 0]
    most = float(squares.max())
    if not (math.isfinite(most) and most > 0 and float(squares.min()) > -_NEGATIVE * most):
        return None
    scales: torch.Tensor = squares.clamp_min(0).sqrt() / sizes
    return scales
