"""What an attention mask lets through, in plain words, verified by value."""

from __future__ import annotations

import torch

from qtrace.numerics import NoValues, plain
from qtrace.numerics.relations import FILL
from qtrace.numerics.relations.mask import blocked_entries

_MOST = 1 << 26


def mask_words(tensor: torch.Tensor) -> str | None:
    """Return what kind of mask a tensor is; None for one that is no mask.

    A mask is additive (floats, with a fill below -1e4 where nothing is let through), bool (True lets through), or
    holds only 0 and 1. One value throughout is said as it is.

    >>> mask_words(torch.ones(1, 4, dtype=torch.int64))
    'all ones'
    >>> mask_words(torch.full((4, 4), -1e9).triu(1))
    'a causal mask (additive)'
    """
    try:
        values = plain(tensor).detach().cpu()
    except NoValues:
        return None
    if not 0 < values.numel() <= _MOST or values.is_complex():
        return None
    low, high = values.min(), values.max()
    if bool(low == high):
        return _constant(low)
    if values.dtype is torch.bool:
        pattern = _pattern(blocked_entries(values))
        return None if pattern is None else f"{pattern} (bool)"
    if values.is_floating_point() and float(low) < FILL:
        blocked = blocked_entries(values)
        others = "" if bool((values[~blocked] == 0).all()) else ", with other values beside the fill"
        pattern = _pattern(blocked) or f"a mask that blocks {int(blocked.sum())} of {blocked.numel()}"
        return f"{pattern} (additive{others})"
    if bool(((values == 0) | (values == 1)).all()):
        pattern = _pattern(values == 0)
        return None if pattern is None else f"{pattern} (of 0 and 1)"
    return None


def _constant(value: torch.Tensor) -> str:
    if value.dtype is torch.bool:
        return f"all {bool(value)}"
    number = float(value)
    return {0.0: "all zeros", 1.0: "all ones"}.get(number, f"all {number:.3g}")


def _pattern(blocked: torch.Tensor) -> str | None:
    """Return the name of a pattern of blocked entries, [..., query, key]; two axes may also be [batch, key].

    None where it has no name: 0 and 1 may stand for anything then.
    """
    keys = blocked.shape[-1] if blocked.dim() else 1
    is_per_batch = blocked.dim() < 2 or (blocked.dim() == 2 and blocked.shape[0] != keys)
    if blocked.dim() >= 2 and blocked.shape[-2] > 1:
        queries = blocked.shape[-2]
        distance = (torch.arange(queries) + keys - queries)[:, None] - torch.arange(keys)
        future = distance < 0
        if torch.equal(blocked, future.expand_as(blocked)):
            return "a causal mask"
        if not is_per_batch and bool(future.any()) and bool(blocked[..., future].all()):
            return _causal_and_more(blocked, future, distance)
    per_key = blocked[..., 0, :] if _is_same_for_all(blocked) else blocked
    steps = per_key[..., 1:].int() - per_key[..., :-1].int()
    # Blocked from some key on, or up to some key.
    is_padding = bool(((steps >= 0).all(-1) | (steps <= 0).all(-1)).all())
    if is_padding and (per_key is not blocked or is_per_batch):
        return f"a padding mask that blocks {int(per_key.sum())} of {per_key.numel()}"
    return None


def _is_same_for_all(blocked: torch.Tensor) -> bool:
    """Return whether every query sees the same keys."""
    return blocked.dim() >= 3 and torch.equal(blocked, blocked[..., :1, :].expand_as(blocked))


def _causal_and_more(blocked: torch.Tensor, future: torch.Tensor, distance: torch.Tensor) -> str:
    farthest = distance.expand_as(blocked)[~blocked]
    window = int(farthest.max()) + 1 if farthest.numel() else 0
    if torch.equal(blocked, (future | (distance >= window)).expand_as(blocked)):
        return f"a causal mask with a window of {window}"
    if torch.equal(blocked, future | blocked.all(-2, keepdim=True)):
        return "a causal mask with padding"
    return f"a causal mask that blocks {int((blocked & ~future).sum())} more"
