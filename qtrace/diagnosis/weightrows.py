"""Which rows of a weight differ from the reference's, and how; in blocks, so that no second weight is held."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

_BLOCK = 1 << 20
_MOST_ROWS = 4


class RowDifferences:
    """The rows (along the first axis) of two tensors of one shape that differ by more than `limit` anywhere.

    A value that is not finite on one side only makes its row differ.
    """

    def __init__(self, reference: torch.Tensor, candidate: torch.Tensor, limit: float) -> None:
        self._reference = reference.reshape(reference.shape[0], -1) if reference.dim() else reference.reshape(1, 1)
        self._candidate = candidate.reshape(self._reference.shape)
        self._limit = limit
        self._of_matrix = reference.dim() > 1
        self.rows: list[int] = []
        first = 0
        for mine, theirs in self._blocks():
            apart = ((mine - theirs).abs() <= limit) | (mine == theirs) | (mine.isnan() & theirs.isnan())
            self.rows += [first + int(row) for row in (~apart.all(1)).nonzero().flatten()]
            first += len(mine)

    def is_everywhere(self) -> bool:
        """Return whether every row differs."""
        return len(self.rows) == len(self._reference)

    def words(self) -> str:
        """Say which rows differ: "differs in 1 of 64 rows (17: opposite sign)"."""
        if not self.rows:
            return "differs by little more than rounding"
        named = [f"{row}{self._how(row)}" for row in self.rows[:_MOST_ROWS]]
        more = ", …" if len(self.rows) > _MOST_ROWS else ""
        what = "rows" if self._of_matrix else "entries"
        return f"differs in {len(self.rows)} of {len(self._reference)} {what} ({', '.join(named)}{more})"

    def factor(self) -> float | None:
        """Return the one factor by which all of the candidate is the reference's, or None."""
        product = energy = 0.0
        for mine, theirs in self._blocks():
            product += float((mine * theirs).sum())
            energy += float((mine * mine).sum())
        if not energy:
            return None
        factor = product / energy
        if abs(factor + 1) <= 1e-6:
            factor = -1.0
        limit = self._limit * max(1.0, abs(factor))
        held = all(bool(((mine * factor - theirs).abs() <= limit).all()) for mine, theirs in self._blocks())
        return factor if held else None

    def is_permuted(self) -> bool:
        """Return whether the candidate has the reference's rows, bit by bit, in another order."""
        mine, theirs = self._reference.detach().cpu(), self._candidate.detach().cpu()
        if not self._of_matrix or mine.dtype != theirs.dtype or not mine.shape[1]:
            return False
        # The largest of each row tells nearly all others apart at the cost of one read.
        if not torch.equal(mine.amax(1).sort().values, theirs.amax(1).sort().values):
            return False
        return sorted(_digests(mine)) == sorted(_digests(theirs))

    def _how(self, row: int) -> str:
        mine, theirs = self._reference[row].double(), self._candidate[row].double()
        if not bool(theirs.isfinite().all()):
            return ": not finite"
        if not bool(theirs.any()):
            return ": zero"
        if bool(((mine + theirs).abs() <= self._limit).all()):
            return ": opposite sign"
        energy = float((mine * mine).sum())
        factor = float((mine * theirs).sum()) / energy if energy else 0.0
        limit = self._limit * max(1.0, abs(factor))
        if factor and len(mine) > 1 and bool(((mine * factor - theirs).abs() <= limit).all()):
            return f": {factor:.4g} times"
        return ""

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield both sides in float64, some rows at a time."""
        step = max(1, _BLOCK // max(1, self._reference.shape[1]))
        for first in range(0, len(self._reference), step):
            mine, theirs = (t[first : first + step].detach().cpu() for t in (self._reference, self._candidate))
            yield mine.double(), theirs.double()


def _digests(matrix: torch.Tensor) -> Iterator[bytes]:
    for row in matrix:
        yield hashlib.blake2b(row.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()
