"""The orthogonal matrix between two sets of tokens: the Procrustes problem."""

from __future__ import annotations

import torch

from qtrace.numerics.relations.difference import Difference
from qtrace.numerics.relations.rotation import rotation_relation

# The singular value decomposition takes about a third of a second there, and eight times that at twice the size.
_MOST_CHANNELS = 512
# Fewer tokens than channels leave the matrix open, and as many make it fit the rounding of each token too.
_TOKENS_PER_CHANNEL = 2


def rotation_matrix(difference: Difference) -> torch.Tensor | None:
    """Return the orthogonal Q, float64 [channels, channels], with candidate = reference Q; None if it cannot be told.

    Q = U Vᵀ minimizes |R Q - C|, with U S Vᵀ the singular value decomposition of Rᵀ C (Schönemann, "A generalized
    solution of the orthogonal Procrustes problem", 1966). The pair must be related by a rotation, have at least
    two tokens per channel and at most 512 channels, and R Q must agree with C value by value.
    """
    channels = difference.reference.shape[-1]
    tokens = difference.reference.numel() // channels
    if channels > _MOST_CHANNELS or tokens < _TOKENS_PER_CHANNEL * channels or rotation_relation(difference) is None:
        return None
    first, second = (x.reshape(-1, channels).double() for x in (difference.reference, difference.candidate))
    left, _, right = torch.linalg.svd(first.T @ second)
    turn: torch.Tensor = left @ right
    return turn if difference.explained(difference.remains(first @ turn, second)) else None
