"""The same channels in another order."""

from __future__ import annotations

import math

import torch

from qtrace.numerics.relations.difference import Difference
from qtrace.report.records import Relation

# All pairs of channels are compared: beyond this that is too dear.
_MOST_CHANNELS = 4096
# Two swapped rows are damage; a permutation moves most channels.
_MOST = 0.5
# Channels must be this unlikely, in bits, to find their like by chance.
_EVIDENCE = 10.0
# What one integer is taken to prove.
_EXACT_BITS = 8.0
_COLUMNS = 1024
_PROBES = 64


def permuted_relation(difference: Difference) -> Relation | None:
    """Return the relation "permuted_channels" where the candidate has the reference's channels in another order.

    One permutation of the last axis must serve all tokens and move more than half of the channels; at most 4096
    channels are looked at. `parameters` are {"axis": -1, "channels", "moved"}; `error` is the PEIR of the
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
    if len(r) < 2 or len(r) * bits < math.log2(channels) + _EVIDENCE:
        return None
    if not same_values(difference, r[0], c[0]) or not _distinct(r):
        return None
    # A few channels first: where they have no like, the others are not asked.
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
    """Return whether two rows hold the same values in any order: the cheap reason to look no further."""
    return difference.remains(r.sort().values, c.sort().values) <= difference.limit


def _distinct(r: torch.Tensor) -> bool:
    """Return whether most channels are unlike all others; among equal ones any order will do."""
    weights = torch.arange(1, len(r) + 1, device=r.device, dtype=torch.float64).sqrt()
    return len(torch.unique(weights @ r.double())) > _MOST * r.shape[1]


def _nearest(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return for each channel of c the nearest of r."""
    r, c = r.double(), c.double()
    squares = r.square().sum(0)[:, None]
    return torch.cat([(squares - 2 * (r.T @ some)).argmin(0) for some in torch.split(c, _COLUMNS, dim=1)])


def _one_to_one(order: torch.Tensor) -> torch.Tensor:
    """Give those whose like is taken what is left over, in order: channels that are equal, such as zeros."""
    channels = len(order)
    first = torch.full((channels,), channels, device=order.device)
    places = torch.arange(channels, device=order.device)
    first.scatter_reduce_(0, order, places, "amin")
    again = first[order] != places
    order[again] = (first == channels).nonzero().flatten()
    return order
