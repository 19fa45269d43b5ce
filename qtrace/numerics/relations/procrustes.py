"""Finds rotated channels, as QuaRot and SpinQuant leave them: the orthogonal Procrustes problem."""

from __future__ import annotations

import math

import torch

from qtrace.numerics.measurement import measure
from qtrace.numerics.relations.difference import VISIBLE, Difference, difference_of, picks
from qtrace.numerics.relations.gain import each_its_own
from qtrace.report.records import Relation

# Inner products add up many elements, each of which may be off by its share of rounding.
_SLACK = 8.0
_LOOSEST = 0.03
# Where all tokens have one direction, a rotation relates any two tensors of equal norms.
_COLLINEAR = 0.99
# A rotation moves every channel; where most are unchanged, some were damaged.
_MOST = 0.5
_MOVED = 0.1
# Agreement must be this unlikely, in bits, to arise by chance.
_EVIDENCE = 14.0
_DISTINCT = 0.01
_ANCHORS = 64
# Wider tensors are left out, as in the search for permutations: no hidden state has so many channels.
_MOST_CHANNELS = 4096
_BLOCK = 1 << 20

# The singular value decomposition takes about a third of a second at this size, and eight times that at twice the size.
_MOST_CHANNELS_SOLVED = 512
# Fewer tokens than channels leave the matrix undetermined, and as many also make it fit the rounding of each token.
_TOKENS_PER_CHANNEL = 2

# The scales solve as many equations as there are channels, which is too expensive beyond this.
_MOST_CHANNELS_RESCALED = 1024
# The least number of inner products per scale: meaningless scales could fit fewer.
_SURPLUS = 4
# Keeps the equations solvable where channels are nearly copies of each other.
_RIDGE = 1e-13
# Squared scales below zero by more than this share of the largest are no scales.
_NEGATIVE = 1e-3


def rotation_relation(difference: Difference) -> Relation | None:
    """Return the relation "rotation" where candidate = reference Q with one orthogonal Q on the last axis, else None.

    Two sets of rows are related by an orthogonal transform (reflections included) if and only if their Gram matrices
    agree: R Rᵀ = C Cᵀ. The search compares the inner products of all tokens with up to 64 anchors, and all norms. The
    anchors are sums and differences of neighbours, since a common offset would make any inner products alike.
    At least two tokens, not collinear, are needed; tensors of more than 4096 channels are not examined. `parameters`
    are {"axis": -1, "tokens"}; `error` is the PEIR between the two matrices of inner products.
    """
    channels = difference.reference.shape[-1]
    tokens = difference.reference.numel() // channels
    if not 2 <= channels <= _MOST_CHANNELS or tokens < 2 or not difference.visible or difference.exact:
        return None
    first, second = (x.reshape(-1, channels) for x in (difference.reference, difference.candidate))
    chosen = picks(tokens, _ANCHORS, first.device)
    limit = min(_SLACK * difference.limit, _LOOSEST)
    r, c = _different_pairs(first[chosen].double(), second[chosen].double())
    if not _moves_most_channels(r, c) or not _anchors_agree(_mixed(r), _mixed(c), limit):
        return None
    error = _all_agree(first, second, _mixed(r), _mixed(c), limit)
    if error is None:
        return None
    return Relation("rotation", {"axis": -1, "tokens": tokens}, error)


def _moves_most_channels(r: torch.Tensor, c: torch.Tensor) -> bool:
    moved = (r - c).norm(dim=0) > _MOVED * r.norm(dim=0)
    return len(r) > 0 and int(moved.sum()) > _MOST * moved.numel()


def _different_pairs(r: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both without rows of zeros (padding) and neighbours that are nearly equal or opposite (repetitions)."""
    live = r.norm(dim=1) > 0
    r, c = r[live], c[live]
    pairs = len(r) // 2
    r, c = r[: 2 * pairs], c[: 2 * pairs]
    norms = r.norm(dim=1).reshape(pairs, 2).amin(1)
    mixed = _mixed(r).norm(dim=1)
    keep = (torch.minimum(mixed[:pairs], mixed[pairs:]) > _DISTINCT * norms).repeat_interleave(2)
    return r[keep], c[keep]


def _mixed(rows: torch.Tensor) -> torch.Tensor:
    """Return the differences of neighbouring rows, then their sums; together they span the same space as the rows."""
    return torch.cat([rows[1::2] - rows[0::2], rows[1::2] + rows[0::2]])


def _anchors_agree(r: torch.Tensor, c: torch.Tensor, limit: float) -> bool:
    norms = r.norm(dim=1)
    if not bool((norms > 0).all()) or not bool(((c.norm(dim=1) - norms).abs() <= limit * norms).all()):
        return False
    scale = norms[:, None] * norms
    wanted, found = r @ r.T / scale, c @ c.T / scale
    pairs = len(r) // 2
    # Products of two sums share the tokens' common offset: they would agree without proving anything.
    telling = torch.ones_like(wanted, dtype=torch.bool).triu(1)
    telling[pairs:, pairs:] = False
    if int(telling.sum()) * -math.log2(limit) < _EVIDENCE or float(wanted[telling].abs().min()) > _COLLINEAR:
        return False
    return _same(wanted, found, wanted[telling], found[telling], limit)


def _same(wanted: torch.Tensor, found: torch.Tensor, telling: torch.Tensor, answer: torch.Tensor, limit: float) -> bool:
    """Return whether all cosines agree one by one, and the `telling` ones also relative to their size."""
    everywhere = bool(((wanted - found).abs() <= limit).all())
    size = float(telling.norm())
    return everywhere and size > 0 and float((telling - answer).norm()) <= limit * size


def _all_agree(
    first: torch.Tensor, second: torch.Tensor, anchors: torch.Tensor, turned: torch.Tensor, limit: float
) -> float | None:
    """Return the PEIR between the inner products of all rows with the anchors, None where they disagree."""
    pairs = len(anchors) // 2
    norms = anchors.norm(dim=1)
    most, low, high = 0.0, math.inf, -math.inf
    step = max(1, _BLOCK // first.shape[1])
    for r, c in zip(torch.split(first, step), torch.split(second, step), strict=True):
        r, c = r.double(), c.double()
        lengths = r.norm(dim=1)
        if not bool(((c.norm(dim=1) - lengths).abs() <= limit * lengths).all()):
            return None
        wanted, found = r @ anchors.T, c @ turned.T
        scale = (lengths[:, None] * norms).clamp_min(torch.finfo(torch.float64).tiny)
        cosines, answers = wanted / scale, found / scale
        if not _same(cosines, answers, cosines[:, :pairs], answers[:, :pairs], limit):
            return None
        most = max(most, float((wanted - found).abs().max()))
        low, high = min(low, float(wanted.min())), max(high, float(wanted.max()))
    return most / (high - low) if high > low else None


def rotation_matrix(difference: Difference) -> torch.Tensor | None:
    """Return the orthogonal Q, float64 [channels, channels], with candidate = reference Q; None if undetermined.

    Q = U Vᵀ minimizes |R Q - C|, with U S Vᵀ the singular value decomposition of Rᵀ C (Schönemann, "A generalized
    solution of the orthogonal Procrustes problem", 1966). The pair must be related by a rotation, have at least
    two tokens per channel and at most 512 channels, and R Q must agree with C value by value.
    """
    channels = difference.reference.shape[-1]
    tokens = difference.reference.numel() // channels
    if (
        channels > _MOST_CHANNELS_SOLVED
        or tokens < _TOKENS_PER_CHANNEL * channels
        or rotation_relation(difference) is None
    ):
        return None
    first, second = (x.reshape(-1, channels).double() for x in (difference.reference, difference.candidate))
    left, _, right = torch.linalg.svd(first.T @ second)
    turn: torch.Tensor = left @ right
    return turn if difference.explained(difference.remains(first @ turn, second)) else None


def rescaled_relation(difference: Difference) -> Relation | None:
    """Return the relation "rotation" where candidate = (scale of the channel x reference) Q, Q orthogonal, else None.

    Then the Gram matrices of the tokens agree: R D² Rᵀ = C Cᵀ, which is linear in D². Its least squares solution is
    that of (RᵀR ∘ RᵀR) d² = diag(Rᵀ C Cᵀ R), and R D must be related to C by a rotation on all tokens.
    More than half of the scales must differ from 1 and from the median one: a damaged weight shows few such scales.
    At least four inner products per channel are needed; tensors of more than 1024 channels are not examined.
    `parameters` are {"axis": -1, "tokens", "min", "max"}, min and max over the scales; `error` is the rotation's.
    """
    channels = difference.reference.shape[-1]
    tokens = difference.reference.numel() // channels
    if not 2 <= channels <= _MOST_CHANNELS_RESCALED or not difference.visible or difference.exact:
        return None
    first, second = (x.reshape(-1, channels) for x in (difference.reference, difference.candidate))
    # n tokens have n (n + 1) / 2 inner products; more than needed make the sums more expensive and add no evidence.
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
    # In units of each channel's own size; otherwise faint channels would have no weight.
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
