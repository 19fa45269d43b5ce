"""The last axis in halves or in even and odd places: the two layouts of rotary position embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qtrace.numerics.relations.difference import Difference
from qtrace.numerics.relations.permuted import same_values
from qtrace.report.records import Relation

# So many elements must come right that were wrong before.
_EVIDENCE = 8
_HOWS = ("swapped", "interleaved", "deinterleaved")


def halves_relation(difference: Difference) -> Relation | None:
    """Return the relation "halves" where the last axis is reordered as rotary layouts do, else None.

    With x1, x2 the halves of the reference's last axis, the candidate is

        swapped        x2, x1
        interleaved    x1[0], x2[0], x1[1], x2[1], …
        deinterleaved  x[0], x[2], …, x[1], x[3], …

    on the whole axis or within each of equal parts of it, the heads. `parameters` are {"axis": -1, "how"} and,
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
        enough = difference.differing(difference.reference, difference.candidate) >= _EVIDENCE
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
