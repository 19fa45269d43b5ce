"""Pairs modules by value: a module is the partner of the one whose weight it holds, in any storage and by any name.

Weights are compared row by row (a row makes one output channel), each row up to its length. So a weight that is
rounded to few bits, scaled per channel, or has a batch norm folded into it is still recognised; another layer's is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qtrace.engine.align.module_info import ModuleInfo, Names
from qtrace.numerics import NoValues, plain

# At most this many rows and columns of each weight are read.
_ROWS, _COLUMNS = 32, 256
# Rows of unrelated weights have a mean cosine near zero; rounding to 4 bits leaves 0.99.
ALIKE = 0.9
# Fewer numbers than this may be alike by chance, and must agree more closely.
_FEW, _SAME = 8, 0.9999
# The second best match must be worse by this much: two freshly initialised norms are no pair.
_MARGIN = 0.05


def weight_of(module: torch.nn.Module | None) -> torch.Tensor | None:
    """Return a module's own weight as a dequantized matrix, one row per output channel; None if it cannot be read."""
    weight = getattr(module, "weight", None)
    if callable(weight) and not isinstance(weight, torch.Tensor):
        try:
            # torch.ao's quantized layers have a method of that name.
            weight = weight()
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):
            return None
    return matrix(weight) if isinstance(weight, torch.Tensor) else None


def matrix(weight: torch.Tensor) -> torch.Tensor | None:
    """Return a dequantized weight as a matrix; None where it cannot be read, or has less than two elements."""
    try:
        if weight.numel() < 2:
            return None
        values = plain(weight)
        return values.reshape(values.shape[0], -1) if values.dim() > 1 else values.reshape(1, -1)
    except (NoValues, RuntimeError, NotImplementedError, TypeError, AttributeError):
        # Packed, on the meta device, or of a type that cannot be converted.
        return None


@dataclass(frozen=True, slots=True)
class WeightSample:
    """Evenly spaced rows and columns of a weight of this shape; each row has length 1, a vector is centred first.

    `told` marks the rows that carry information: no row of zeros, such as a padding token's, nor one that is not
    finite. `freedom` counts the degrees of freedom: rows of two numbers are easily alike, a single number always is.
    """

    shape: tuple[int, ...]
    rows: torch.Tensor
    told: torch.Tensor
    freedom: int

    @classmethod
    def of(cls, weight: torch.Tensor | None) -> WeightSample | None:
        """Return the sample of a matrix; None for one without information, such as a norm's ones."""
        if weight is None:
            return None
        shape = tuple(weight.shape)
        # Rows of one number are all the same up to their lengths.
        chosen = weight.reshape(1, -1) if shape[1] == 1 else weight
        rows, columns = chosen.shape
        if rows > _ROWS:
            chosen = chosen[torch.linspace(0, rows - 1, _ROWS).long()]
        if columns > _COLUMNS:
            chosen = chosen[:, torch.linspace(0, columns - 1, _COLUMNS).long()]
        values = chosen.detach().cpu().double()
        if rows == 1:
            # The weights of norms are all near 1: only their deviations from that distinguish them.
            values = values - values.mean()
        lengths = values.norm(dim=1)
        told = lengths.isfinite() & (lengths > 0)
        freedom = int(told.sum()) * (values.shape[1] - 1) - (rows == 1)
        return cls(shape, values / lengths[:, None], told, freedom) if freedom > 0 else None

    def likeness(self, other: WeightSample | None) -> float | None:
        """Return the mean cosine of the rows, 0 to 1; None for another shape, or where no rows can be compared."""
        if other is None or self.shape != other.shape:
            return None
        told = self.told & other.told
        return float((self.rows * other.rows).sum(1)[told].abs().mean()) if bool(told.any()) else None

    @property
    def enough(self) -> float:
        """Return the least likeness at which another weight counts as this one, rounded or scaled."""
        return ALIKE if self.freedom >= _FEW else _SAME

    def is_in(self, other: WeightSample | None) -> bool:
        """Return whether the other weight is this one, rounded or scaled."""
        alike = self.likeness(other)
        return alike is not None and alike >= self.enough


def sample_of(module: torch.nn.Module | None) -> WeightSample | None:
    """Return the sample of a module's own weight; None where that cannot be read."""
    return WeightSample.of(weight_of(module))


def likeness(reference: torch.nn.Module | None, candidate: torch.nn.Module | None) -> float | None:
    """Return the mean cosine of the rows of two modules' weights, 0 to 1; None where they cannot be compared."""
    mine = sample_of(reference)
    return mine.likeness(sample_of(candidate)) if mine is not None else None


def by_weights(open_reference: Iterable[ModuleInfo], open_candidate: Iterable[ModuleInfo]) -> Names:
    """Return the pairs of modules whose weights are alike, each being the other's best match by a clear margin."""
    mine = _by_shape(open_reference)
    theirs = _by_shape(open_candidate if mine else ())
    found: Names = {}
    for shape in mine.keys() & theirs.keys():
        scores = _likenesses([one for _, one in mine[shape]], [one for _, one in theirs[shape]])
        clear = _clear(scores) & _clear(scores.T).T
        for row, column in clear.nonzero().tolist():
            name, sample = mine[shape][row]
            if scores[row, column] >= sample.enough:
                found[theirs[shape][column][0]] = name
    return found


def _by_shape(modules: Iterable[ModuleInfo]) -> dict[tuple[int, ...], list[tuple[str, WeightSample]]]:
    groups: dict[tuple[int, ...], list[tuple[str, WeightSample]]] = {}
    for module in modules:
        sample = sample_of(module.module)
        if sample is not None:
            groups.setdefault(sample.shape, []).append((module.path, sample))
    return groups


def _likenesses(mine: list[WeightSample], theirs: list[WeightSample]) -> torch.Tensor:
    """Return the likeness of each of mine to each of theirs, all of one shape; 0 where no rows can be compared."""
    first, second = (torch.stack([one.rows for one in ones]).nan_to_num(0, 0, 0) for ones in (mine, theirs))
    told = [torch.stack([one.told for one in ones]).double() for ones in (mine, theirs)]
    total = torch.zeros(len(mine), len(theirs), dtype=torch.float64)
    for row in range(first.shape[1]):
        total += (first[:, row] @ second[:, row].T).abs()
    return total / (told[0] @ told[1].T).clamp(min=1)


def _clear(scores: torch.Tensor) -> torch.Tensor:
    """Return a mask of each row's best score, where no other score in the row comes near it."""
    best, place = scores.topk(min(2, scores.shape[1]), dim=1)
    clear = best[:, 0] >= ALIKE
    if best.shape[1] > 1:
        clear &= best[:, 1] <= best[:, 0] - _MARGIN
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, place[:, :1], clear[:, None])
