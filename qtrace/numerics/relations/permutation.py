"""Finds channels in another order: any permutation; halves and interleaved pairs, the layouts of rotary embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from qtrace.numerics.relations.difference import Difference
from qtrace.report.records import Relation

# All pairs of channels are compared, which is too expensive beyond this.
_MOST_CHANNELS = 4096
# Two swapped rows are damage; a permutation moves most channels.
_MOST = 0.5
# A match of two channels must be this unlikely, in bits, to arise by chance.
_LEAST_BITS = 10.0
# The evidence, in bits, that one equal integer counts for.
_EXACT_BITS = 8.0
_COLUMNS = 1024
_PROBES = 64
# A reordering must make at least this many elements agree that differed before.
_LEAST_DIFFERING = 8
_HOWS = ("swapped", "interleaved", "deinterleaved")


def permuted_relation(difference: Difference) -> Relation | None:
    """Return the relation "permuted_channels" where the candidate has the reference's channels in another order.

    One permutation of the last axis must fit all tokens and move more than half of the channels; tensors of more than
    4096 channels are not examined. `parameters` are {"axis": -1, "channels", "moved"}; `error` is the PEIR of the
    permuted reference against the candidate. The permutation comes from `channel_permutation`.
    """
    order = channel_permutation(difference)
    if order is None:
        return None
    channels = len(order)
    moved = int((order != torch.arange(channels, device=order.device)).sum())
    error = difference.remains(difference.reference.index_select(-1, order), difference.candidate)
    return Relation("permuted_channels", {"axis": -1, "channels": channels, "moved": moved}, error)


def channel_permutation(difference: Difference) -> torch.Tensor | None:
    """Return `order` with candidate[..., j] = reference[..., order[j]], int64 [channels]; None if there is none."""
    channels = difference.reference.shape[-1]
    if not 2 <= channels <= _MOST_CHANNELS or not difference.visible:
        return None
    r, c = difference.rows()
    bits = _EXACT_BITS if difference.exact else -math.log2(2 * difference.limit)
    if len(r) < 2 or len(r) * bits < math.log2(channels) + _LEAST_BITS:
        return None
    if not same_values(difference, r[0], c[0]) or not _distinct(r):
        return None
    # A few channels first: where they have no match, the others are not tried.
    some = _nearest(r, c[:, :_PROBES])
    if not difference.explained(difference.remains(r[:, some], c[:, :_PROBES])):
        return None
    order = _one_to_one(_nearest(r, c))
    if int((order != torch.arange(channels, device=order.device)).sum()) <= _MOST * channels:
        return None
    if not difference.explained(difference.remains(r[:, order], c)):
        return None
    reordered = difference.reference.index_select(-1, order)
    if not difference.explained(difference.remains(reordered, difference.candidate)):
        return None
    return order if difference.improves(difference.reference, reordered, difference.candidate) else None


def same_values(difference: Difference, r: torch.Tensor, c: torch.Tensor) -> bool:
    """Return whether two rows hold the same values in any order; where not, the search can stop at little cost."""
    return difference.remains(r.sort().values, c.sort().values) <= difference.limit


def _distinct(r: torch.Tensor) -> bool:
    """Return whether most channels differ from all others; equal channels match in any order."""
    weights = torch.arange(1, len(r) + 1, device=r.device, dtype=torch.float64).sqrt()
    return len(torch.unique(weights @ r.double())) > _MOST * r.shape[1]


def _nearest(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return for each channel of c the index of the nearest channel of r."""
    r, c = r.double(), c.double()
    squares = r.square().sum(0)[:, None]
    return torch.cat([(squares - 2 * (r.T @ some)).argmin(0) for some in torch.split(c, _COLUMNS, dim=1)])


def _one_to_one(order: torch.Tensor) -> torch.Tensor:
    """Return the order with the unused channels, in order, where a match is taken: equal channels, such as zeros."""
    channels = len(order)
    first = torch.full((channels,), channels, device=order.device)
    places = torch.arange(channels, device=order.device)
    first.scatter_reduce_(0, order, places, "amin")
    again = first[order] != places
    order[again] = (first == channels).nonzero().flatten()
    return order


def halves_relation(difference: Difference) -> Relation | None:
    """Return the relation "halves" where the last axis is reordered as rotary layouts do, else None.

    With x1, x2 the halves of the reference's last axis, the candidate is

        swapped        x2, x1
        interleaved    x1[0], x2[0], x1[1], x2[1], …
        deinterleaved  x[0], x[2], …, x[1], x[3], …

    on the whole axis or within each of its equal parts, the heads. `parameters` are {"axis": -1, "how"} and,
    for heads, "head_dim"; `error` is the PEIR of the reordered reference against the candidate.
    """
    size = difference.reference.shape[-1]
    if size < 4 or size % 2 or not difference.visible:
        return None
    r, c = difference.rows()
    if not same_values(difference, r[0], c[0]):
        return None
    for parameters in _layouts(size):
        order = halves_order(size, parameters, r.device)
        if not difference.explained(difference.remains(r[:1, order], c[:1])):
            continue
        if not difference.explained(difference.remains(r[:, order], c)):
            continue
        reordered = difference.reference.index_select(-1, order)
        error = difference.remains(reordered, difference.candidate)
        if not difference.explained(error):
            continue
        enough = difference.differing(difference.reference, difference.candidate) >= _LEAST_DIFFERING
        if enough and difference.improves(difference.reference, reordered, difference.candidate):
            return Relation("halves", parameters, error)
    return None


def halves_order(size: int, parameters: dict[str, Any], device: torch.device) -> torch.Tensor:
    """Return `order` with candidate[..., j] = reference[..., order[j]], int64 of shape [size]."""
    head_dim = parameters.get("head_dim", size)
    heads = torch.arange(size, device=device).reshape(-1, head_dim)
    how, half = parameters["how"], head_dim // 2
    if how == "swapped":
        parts = torch.cat([heads[:, half:], heads[:, :half]], 1)
    elif how == "interleaved":
        parts = torch.stack([heads[:, :half], heads[:, half:]], 2)
    else:
        parts = torch.cat([heads[:, 0::2], heads[:, 1::2]], 1)
    return parts.reshape(-1)


def _layouts(size: int) -> Iterator[dict[str, Any]]:
    for parts in (n for n in range(1, size // 4 + 1) if size % (2 * n) == 0):
        for how in _HOWS:
            yield {"axis": -1, "how": how, **({"head_dim": size // parts} if parts > 1 else {})}
