"""The same tokens in rotated channels: what QuaRot and SpinQuant leave of hidden states."""

from __future__ import annotations

import math

import torch

from qtrace.numerics.relations.difference import Difference
from qtrace.numerics.relations.elements import picks
from qtrace.report.records import Relation

# Inner products add up many elements, each of which may be off by its share of rounding.
_SLACK = 8.0
_LOOSEST = 0.03
# Tokens that all point one way are turned into each other by any two tensors of equal norms.
_COLLINEAR = 0.99
# A rotation moves every channel; where most stay as they are, some were damaged.
_MOST = 0.5
_MOVED = 0.1
# Agreement must be this unlikely, in bits, to come about by chance.
_EVIDENCE = 14.0
_DISTINCT = 0.01
_ANCHORS = 64
# Wider tensors are left out, as in the search for permutations: no hidden state has so many channels.
_MOST_CHANNELS = 4096
_BLOCK = 1 << 20


def rotation_relation(difference: Difference) -> Relation | None:
    """Return the relation "rotation" where candidate = reference Q with one orthogonal Q on the last axis, else None.

    Two sets of rows are related by an orthogonal transform (reflections included) just if their Gram matrices
    agree: R Rᵀ = C Cᵀ. Compared are the inner products of all tokens with up to 64 anchors, and all norms. The
    anchors are sums and differences of neighbours, since a common offset would make any inner products alike.
    At least two tokens, not collinear, are needed, and at most 4096 channels are looked at. `parameters` are
    {"axis": -1, "tokens"}; `error` is the PEIR between the two matrices of inner products.
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
    """Leave out rows of zeros (padding) and neighbours that are all but equal or opposite (repeated tokens)."""
    live = r.norm(dim=1) > 0
    r, c = r[live], c[live]
    pairs = len(r) // 2
    r, c = r[: 2 * pairs], c[: 2 * pairs]
    norms = r.norm(dim=1).reshape(pairs, 2).amin(1)
    mixed = _mixed(r).norm(dim=1)
    keep = (torch.minimum(mixed[:pairs], mixed[pairs:]) > _DISTINCT * norms).repeat_interleave(2)
    return r[keep], c[keep]


def _mixed(rows: torch.Tensor) -> torch.Tensor:
    """Return the differences of neighbouring rows, then their sums; together they span what the rows span."""
    return torch.cat([rows[1::2] - rows[0::2], rows[1::2] + rows[0::2]])


def _anchors_agree(r: torch.Tensor, c: torch.Tensor, limit: float) -> bool:
    norms = r.norm(dim=1)
    if not bool((norms > 0).all()) or not bool(((c.norm(dim=1) - norms).abs() <= limit * norms).all()):
        return False
    scale = norms[:, None] * norms
    wanted, found = r @ r.T / scale, c @ c.T / scale
    pairs = len(r) // 2
    # The sums among each other share the tokens' common offset: they would agree without proving anything.
    telling = torch.ones_like(wanted, dtype=torch.bool).triu(1)
    telling[pairs:, pairs:] = False
    if int(telling.sum()) * -math.log2(limit) < _EVIDENCE or float(wanted[telling].abs().min()) > _COLLINEAR:
        return False
    return _same(wanted, found, wanted[telling], found[telling], limit)


def _same(wanted: torch.Tensor, found: torch.Tensor, telling: torch.Tensor, answer: torch.Tensor, limit: float) -> bool:
    """Return whether cosines agree one by one, and the telling ones also beside how small they are."""
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
