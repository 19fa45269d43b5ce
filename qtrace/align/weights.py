"""Rule by value: a module answers to the one whose weight it holds, however it is stored and whatever it is called.

Weights are compared row by row (a row is what makes one output channel), each up to its length: so a weight rounded to
few bits, scaled per channel, or with a batch norm folded into it is still known, and another layer's is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qtrace.align.modules import ModuleInfo, Names
from qtrace.stats import NoValues, plain

# Of each weight, so many rows and columns are read.
_ROWS, _COLUMNS = 32, 256
# Rows of unrelated weights have a mean cosine near zero; 4 bits leave 0.99.
ALIKE = 0.9
# The second best must be this much farther off: two norms fresh from their initialisation are no pair.
_MARGIN = 0.05


def weight_of(module: torch.nn.Module | None) -> torch.Tensor | None:
    """Return a module's own weight as a dequantized matrix, an output channel a row; None where it cannot be read."""
    weight = getattr(module, "weight", None)
    try:
        if callable(weight) and not isinstance(weight, torch.Tensor):
            # torch.ao's quantized layers have a method of that name.
            weight = weight()
        if not isinstance(weight, torch.Tensor) or weight.numel() < 2:
            return None
        values = plain(weight)
        return values.reshape(values.shape[0], -1) if values.dim() > 1 else values.reshape(1, -1)
    except (NoValues, RuntimeError, NotImplementedError, TypeError, AttributeError):
        # Packed, on the meta device, or of a type that refuses.
        return None


@dataclass(frozen=True, slots=True)
class WeightSample:
    """Evenly spaced rows and columns of a weight of this shape; each row has length 1, a vector is centred first.

    `told` says which rows tell anything: not one of zeros, such as a padding token's, nor one that is not finite.
    """

    shape: tuple[int, ...]
    rows: torch.Tensor
    told: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor | None) -> WeightSample | None:
        """Return the sample of a matrix; None of one that tells nothing, such as a norm's ones."""
        if weight is None:
            return None
        rows, columns = weight.shape
        chosen = weight
        if rows > _ROWS:
            chosen = chosen[torch.linspace(0, rows - 1, _ROWS).long()]
        if columns > _COLUMNS:
            chosen = chosen[:, torch.linspace(0, columns - 1, _COLUMNS).long()]
        values = chosen.detach().cpu().double()
        if rows == 1:
            # Norms' weights are all near 1: only how they differ from that tells them apart.
            values = values - values.mean()
        lengths = values.norm(dim=1)
        told = lengths.isfinite() & (lengths > 0)
        return cls((rows, columns), values / lengths[:, None], told) if bool(told.any()) else None

    def likeness(self, other: WeightSample | None) -> float | None:
        """Return the mean cosine of the rows, 0 to 1; None for a weight of another shape, or nothing to compare."""
        if other is None or self.shape != other.shape:
            return None
        told = self.told & other.told
        return float((self.rows * other.rows).sum(1)[told].abs().mean()) if bool(told.any()) else None


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
        scores = torch.tensor([[m.likeness(t) or 0.0 for _, t in theirs[shape]] for _, m in mine[shape]])
        for row, (name, _) in enumerate(mine[shape]):
            column = int(scores[row].argmax())
            if _is_clear(scores[row], column) and _is_clear(scores[:, column], row):
                found[theirs[shape][column][0]] = name
    return found


def joined(parts: Iterable[ModuleInfo], whole: ModuleInfo) -> bool:
    """Return whether the whole's weight is the parts' on top of each other, as in one projection for q, k and v."""
    weights = [weight_of(part.module) for part in parts]
    together = weight_of(whole.module)
    if together is None or together.shape[0] < 2:
        return False
    first = 0
    for weight in weights:
        if weight is None or weight.shape[1] != together.shape[1]:
            return False
        mine = WeightSample.of(weight)
        alike = mine.likeness(WeightSample.of(together[first : first + weight.shape[0]])) if mine is not None else None
        if alike is None or not alike >= ALIKE:
            return False
        first += weight.shape[0]
    return first == together.shape[0]


def _by_shape(modules: Iterable[ModuleInfo]) -> dict[tuple[int, ...], list[tuple[str, WeightSample]]]:
    groups: dict[tuple[int, ...], list[tuple[str, WeightSample]]] = {}
    for module in modules:
        sample = sample_of(module.module)
        if sample is not None:
            groups.setdefault(sample.shape, []).append((module.path, sample))
    return groups


def _is_clear(scores: torch.Tensor, best: int) -> bool:
    others = torch.cat((scores[:best], scores[best + 1 :]))
    return bool(scores[best] >= ALIKE) and (not len(others) or bool(others.max() <= scores[best] - _MARGIN))
