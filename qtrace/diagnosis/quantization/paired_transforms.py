"""Finds what one linear layer takes in and a later one takes out again: gains of channels, or a rotation of them.

Values and the output projection of attention are the usual pair, by heads; so are the two layers of an MLP. From one
rounded weight a gain or a rotation is only known up to the rounding. Used as the inverse of itself in the other weight
it is exact, whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qtrace.numerics.quantized import is_rounded

# The gains of both weights undo each other up to this, in the median.
_UNDONE = 0.1
# Weights of one scheme are rounded as much as one another, up to this factor.
_AS_MUCH = 1.5
# A transform leaves less of the difference than there is without it.
_NEARER = 0.8


@dataclass(frozen=True, slots=True)
class Weights:
    """The reference's weight of a layer, [out, in], and the candidate's."""

    reference: Tensor
    candidate: Tensor
    from_codes: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """Both weights with the transform in them, unrounded; `turn` is what the first one's outputs are multiplied by."""

    first: Tensor
    second: Tensor
    turn: Tensor

    @property
    def words(self) -> str:
        """Return what the transform is."""
        if not _is_diagonal(self.turn):
            return "with a rotation"
        gains = self.turn.diagonal()
        return f"with gains, {float(gains.min()):.3g} to {float(gains.max()):.3g},"


def joined(first: Weights, second: Weights, heads: Sequence[int], noise: float = 0.0) -> Joined | None:
    """Return what undoes itself between two layers; None where nothing of that kind makes both a rounding.

    Args:
        first: the layer whose outputs are transformed.
        second: the layer that reads them; each head of them several times, where queries are grouped.
        heads: counts of heads of the first that may be.
        noise: what the rounding of other weights leaves, as a part of their norm: no more left over in both is enough.
    """
    rows, columns = len(first.reference), second.reference.shape[1]
    if columns % rows:
        return None
    # The smallest heads first: a rotation across heads would fit as well, and take their noise for a part of it.
    for count in sorted({1, *heads}, reverse=True):
        if rows % count:
            continue
        width = rows // count
        # Of each column of the second the row of the first that it reads.
        places = torch.arange(rows).reshape(count, 1, width).expand(count, columns // rows, width).reshape(-1)
        for turn in _turns(first, second, places.to(first.reference.device), width):
            one = turn @ first.reference.double()
            # The inverse of a rotation, or of gains, on the columns that read each head.
            back = torch.linalg.inv(turn)
            other = second.reference.double() @ _spread(back, places, width)
            if _is_left(one, first, turn, noise) and _is_left(other, second, turn, noise):
                return Joined(one, other, turn)
    return None


def _is_left(made: Tensor, weights: Weights, turn: Tensor, noise: float) -> bool:
    """Return whether all that is left of a weight is rounding."""
    off = float((weights.candidate.double() - made).norm())
    if off <= _AS_MUCH * noise * float(made.norm()):
        return True
    if not off <= _NEARER * float((weights.candidate.double() - weights.reference.double()).norm()):
        return False
    return is_rounded(made, weights.candidate, from_codes=weights.from_codes or not _is_diagonal(turn))


def _is_diagonal(turn: Tensor) -> bool:
    return not bool((turn - turn.diagonal().diag()).any())


def _turns(first: Weights, second: Weights, places: Tensor, width: int) -> Iterator[Tensor]:
    """Yield the gains of the first layer's outputs, then a rotation of each head's, as they are fitted."""
    mine, theirs = first.reference.double(), first.candidate.double()
    gains = (mine * theirs).sum(1) / mine.square().sum(1).clamp(min=1e-300)
    ours, other = second.reference.double(), second.candidate.double()
    product, energy = torch.zeros_like(gains), torch.zeros_like(gains)
    product.index_add_(0, places, (ours * other).sum(0))
    energy.index_add_(0, places, ours.square().sum(0))
    undone = product / energy.clamp(min=1e-300)
    if bool((gains * undone > 0).all()) and float((gains * undone - 1).abs().median()) <= _UNDONE:
        yield (gains.sign() * (gains / undone).sqrt()).diag()
    heads = [
        _rotation(mine[start : start + width], theirs[start : start + width]) for start in range(0, len(mine), width)
    ]
    if all(head is not None for head in heads):
        yield _in_blocks([head for head in heads if head is not None])


def _rotation(mine: Tensor, theirs: Tensor) -> Tensor | None:
    """Return the orthogonal R nearest to theirs = R @ mine (Schoenemann, 1966)."""
    if not bool(torch.isfinite(theirs).all()):
        return None
    left, _, right = torch.linalg.svd(theirs @ mine.t())
    turn: Tensor = left @ right
    return turn


def _spread(back: Tensor, places: Tensor, width: int) -> Tensor:
    """Return the inverse for the columns of the second layer, head by head."""
    return _in_blocks([back[start : start + width, start : start + width] for start in places[::width].tolist()])


def _in_blocks(blocks: Sequence[Tensor]) -> Tensor:
    """Return the matrix with these square blocks on its diagonal."""
    width = len(blocks[0])
    found = blocks[0].new_zeros(width * len(blocks), width * len(blocks))
    for place, block in enumerate(blocks):
        found[place * width : (place + 1) * width, place * width : (place + 1) * width] = block
    return found
