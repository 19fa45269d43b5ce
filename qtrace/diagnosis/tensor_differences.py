"""Says in words how the parameters and buffers of two modules differ: in which rows, in order, in sign, by a factor."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from qtrace.numerics import NoValues, measure, plain
from qtrace.numerics.quantized import is_rounded
from qtrace.numerics.tolerance import rounding_tolerance
from qtrace.report.records import Statistics, Status

_BLOCK = 1 << 20
_MOST_ROWS = 4
# Under weight norm and other parametrizations these are computed, and held under other names.
_COMPUTED = ("weight", "bias")
# Two independent random tensors of n elements have a cosine of about 1/sqrt(n).
_UNRELATED = 4.0
_ENOUGH_ELEMENTS = 256
# Fewer values at other places may be a chance, and are read in their rows.
_ENOUGH_PLACES = 8
_HALF = (torch.bfloat16, torch.float16)
# What a weight is that was rounded to a grid, and that is no fault by itself.
ROUNDED = "is the reference's, rounded"


class RowDifferences:
    """The rows (along the first axis) of two tensors of one shape that differ by more than `limit` anywhere.

    A value that is not finite on one side only makes its row differ. `kind` is what a row of a matrix is called.
    """

    def __init__(self, reference: torch.Tensor, candidate: torch.Tensor, limit: float, kind: str = "rows") -> None:
        self._reference = reference.reshape(reference.shape[0], -1) if reference.dim() else reference.reshape(1, 1)
        self._candidate = candidate.reshape(self._reference.shape)
        self.limit = limit
        self._of_matrix = reference.dim() > 1
        self._kind = kind if self._of_matrix else "entries"
        self.rows: list[int] = []
        first = 0
        for mine, theirs in self._blocks():
            apart = ((mine - theirs).abs() <= limit) | (mine == theirs) | (mine.isnan() & theirs.isnan())
            self.rows += [first + int(row) for row in (~apart.all(1)).nonzero().flatten()]
            first += len(mine)

    def is_everywhere(self) -> bool:
        """Return whether every row differs."""
        return self.share() == 1

    def share(self) -> float:
        """Return the share of the rows that differ."""
        return len(self.rows) / len(self._reference)

    def words(self) -> str:
        """Return in words which rows differ: "differs in 1 of 64 rows (17: opposite sign)"."""
        if not self.rows:
            return "differs by little more than rounding"
        named = [f"{row}{self._how(row)}" for row in self.rows[:_MOST_ROWS]]
        more = ", …" if len(self.rows) > _MOST_ROWS else ""
        found = f"differs in {len(self.rows)} of {len(self._reference)} {self._kind} ({', '.join(named)}{more})"
        if self._of_matrix or len(self.rows) < 2:
            return found
        apart = RowDifferences(self._reference[self.rows], self._candidate[self.rows], self.limit)
        factor = apart.factor() if not apart._reference.is_complex() else None
        return found if not factor else f"{found}: {factor:.6g} times"

    def factor(self) -> float | None:
        """Return the one factor between all of the candidate's values and the reference's, or None."""
        product = energy = 0.0
        for mine, theirs in self._blocks():
            product += float((mine * theirs).sum())
            energy += float((mine * mine).sum())
        if not energy:
            return None
        factor = product / energy
        if abs(factor + 1) <= 1e-6:
            factor = -1.0
        limit = self.limit * max(1.0, abs(factor))
        held = all(bool(((mine * factor - theirs).abs() <= limit).all()) for mine, theirs in self._blocks())
        return factor if held else None

    def have_factors(self) -> bool:
        """Return whether each row of the candidate is the reference's by a factor."""
        if self._reference.is_complex() or self._reference.shape[1] < 2:
            return False
        for mine, theirs in self._blocks():
            energy = mine.square().sum(1, keepdim=True)
            factors = (mine * theirs).sum(1, keepdim=True) / energy.clamp(min=torch.finfo(torch.float64).tiny)
            if not bool(((mine * factors - theirs).abs() <= self.limit * factors.abs().clamp(min=1)).all()):
                return False
        return True

    def is_permuted(self) -> bool:
        """Return whether the candidate has the reference's rows, bit by bit, in another order."""
        mine, theirs = self._reference.detach().cpu(), self._candidate.detach().cpu()
        if not self._of_matrix or mine.dtype != theirs.dtype or not mine.shape[1]:
            return False
        # Comparing the largest value of each row rules out nearly all other tensors at the cost of one read.
        if not torch.equal(mine.amax(1).sort().values, theirs.amax(1).sort().values):
            return False
        return sorted(_digests(mine)) == sorted(_digests(theirs))

    def is_shuffled(self) -> bool:
        """Return whether the rows that differ hold the reference's values, bit by bit, at other places."""
        if self._reference[:1].numel() * len(self.rows) < _ENOUGH_PLACES:
            return False
        mine, theirs = (t if self.is_everywhere() else t[self.rows] for t in (self._reference, self._candidate))
        # The extremes rule out nearly all other tensors before anything is sorted.
        if not (torch.equal(mine.amax(), theirs.amax()) and torch.equal(mine.amin(), theirs.amin())):
            return False
        return torch.equal(*(t.flatten().sort().values for t in (mine, theirs)))

    def emptied(self) -> str:
        """Return in words which rows are zero in the candidate alone; nothing where it has no more of them."""
        mine, theirs = (~t.any(1) for t in (self._reference, self._candidate))
        new = [int(row) for row in (theirs & ~mine).nonzero().flatten()]
        if not self._of_matrix or int(theirs.sum()) <= int(mine.sum()):
            return ""
        named = ", ".join(map(str, new[:_MOST_ROWS])) + (", …" if len(new) > _MOST_ROWS else "")
        return f"; zero in {len(new)} of {len(theirs)} {self._kind} ({named})"

    def _how(self, row: int) -> str:
        mine, theirs = self._reference[row].double(), self._candidate[row].double()
        if not bool(theirs.isfinite().all()):
            return ": not finite"
        if not bool(theirs.any()):
            return ": zero"
        if bool(((mine + theirs).abs() <= self.limit).all()):
            return ": opposite sign"
        energy = float((mine * mine).sum())
        factor = float((mine * theirs).sum()) / energy if energy else 0.0
        limit = self.limit * max(1.0, abs(factor))
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


def tensor_differences(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Yield the parameters and buffers that differ by more than the rounding of their dtypes.

    A weight that is computed from other parameters, as under weight norm, is compared as it is computed. How a weight
    is stored is no difference: transposed, or with axes of size 1 more or less.
    """
    theirs_by_name = [_held_tensors(candidate) for candidate in candidates]
    ours = _held_tensors(reference)
    for name, mine in ours.items():
        held = [tensors[name] for tensors in theirs_by_name if name in tensors]
        theirs = next((tensor for tensor in held if tensor is not None), None)
        if mine is not None and theirs is not None:
            other = _exchanged(name, theirs, ours)
            if other is not None:
                how = next(_tensors(name, mine, theirs), name)
                yield f"{how}; it holds the reference's {other}: exchanged, or assigned to another name"
                continue
            yield from _tensors(name, mine, theirs, turned=name == "weight" and _is_turned(reference, candidates))
        elif held and (mine is None) != (theirs is None):
            there = [f"{list(t.shape)}" if t is not None else "None" for t in (mine, theirs)]
            yield f"{name} {there[0]} against {there[1]}"


def _held_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """Return a module's parameters and buffers by name, and its weight and bias where they are computed."""
    found: dict[str, torch.Tensor | None] = {**module._parameters, **module._buffers}
    for name in _COMPUTED if found or module._modules else ():
        if name not in found:
            with contextlib.suppress(Exception):  # a property of anybody's may raise anything
                value = getattr(module, name, None)
                if isinstance(value, torch.Tensor):
                    found[name] = value
    return found


def held_tensor(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    """Return the parameter or the buffer of a module with this name; None without one."""
    return module._parameters.get(name, module._buffers.get(name))


def stored_alike(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor | None:
    """Return the candidate's tensor in the shape of the reference's, where that is only a matter of how it is stored.

    Axes of size 1 may be more or less, and two axes exchanged: a 1 x 1 convolution's weight for a linear layer's, or
    `Conv1D`'s for `Linear`'s. None where the shapes leave neither.
    """
    if reference.shape == candidate.shape:
        return candidate
    if reference.numel() != candidate.numel():
        return None
    wanted, given = ([n for n in t.shape if n != 1] for t in (reference, candidate))
    if wanted == given:
        return candidate.reshape(reference.shape)
    if len(wanted) == 2 and wanted == given[::-1]:
        return candidate.reshape(given).t().reshape(reference.shape)
    return None


def _exchanged(name: str, candidate: torch.Tensor, tensors: Mapping[str, torch.Tensor | None]) -> str | None:
    """Return which other tensor of a module the candidate's tensor of this name equals; None where it is this one."""
    equal = [key for key, tensor in tensors.items() if tensor is not None and holds_the_same(tensor, candidate)]
    return equal[0] if equal and name not in equal else None


def holds_the_same(reference: torch.Tensor, candidate: torch.Tensor) -> bool:
    """Return whether two tensors of one shape hold equal values that are not all one number."""
    if reference.shape != candidate.shape or reference.device != candidate.device or candidate.numel() < 2:
        return False
    try:
        first, second = plain(reference), plain(candidate)
    except NoValues:
        return False
    if first.is_meta or second.is_meta:
        return False
    return torch.equal(first, second) and bool((first != first.flatten()[0]).any())


def _is_turned(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> bool:
    """Return whether one side's class holds its weight transposed: transformers' `Conv1D` stands for a linear layer."""
    names = [type(reference).__name__, *(type(candidate).__name__ for candidate in candidates[-1:])]
    return len({name == "Conv1D" for name in names}) == 2 and any("Linear" in name for name in names)


def _tensors(name: str, reference: torch.Tensor, candidate: torch.Tensor, *, turned: bool = False) -> Iterator[str]:
    if reference is candidate:
        return
    if turned and candidate.dim() == 2 and candidate.shape[0] == candidate.shape[1]:
        if torch.equal(reference, candidate):
            yield f"{name} holds the reference's values, but is not transposed as its class has it"
            return
        candidate = candidate.t()
    try:
        first, second = plain(reference), plain(candidate)
    except NoValues:
        return
    relaid = stored_alike(first, second)
    if relaid is None:
        there = f"{name} {list(reference.shape)} against {list(candidate.shape)}"
        flat = [t.flatten(1) for t in (first, second)] if min(first.dim(), second.dim()) > 1 else []
        if flat and flat[0].shape == flat[1].shape and not torch.equal(*flat):
            is_same_set = torch.equal(*(t.sort(1).values for t in flat))
            there += ", with the reference's columns in another order" if is_same_set else ", with other values"
        yield there
        return
    second = relaid
    try:
        found = measure(first, second).result()
    except NoValues:
        return
    bad = found.non_finite or (0, 0)
    if bad[0] != bad[1]:
        yield f"{name} holds {bad[1]} values that are not finite, against {bad[0]} in the reference"
    elif bad[0] and not _same_bits(first, second):
        # Codes in a floating container: some of them read as NaN.
        yield f"{name} holds other bits where both hold values that are not finite"
    rounding = rounding_tolerance((first.dtype, second.dtype), 0)
    # A constant tensor, as a fresh norm's weight, has no interval to measure against.
    size = found.peir if found.status is not Status.CONSTANT_REFERENCE else found.rel_l2
    if not found.max or (size is not None and size <= rounding):
        return
    if first.numel() == 1:
        yield f"{name} {first.item():g} against {second.item():g}"
    else:
        yield f"{name} {_how(first, second, found, rounding)}"


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype or not first.dim():
        return True
    return torch.equal(*(t.detach().contiguous().view(torch.uint8) for t in (first, second)))


def _how(first: torch.Tensor, second: torch.Tensor, found: Statistics, rounding: float) -> str:
    """Return in words how two tensors of one shape differ: in some rows, or everywhere and then in which way."""
    is_large = first.dim() > 1 and first.numel() >= _ENOUGH_ELEMENTS and first.is_floating_point()
    if is_large and first.device == second.device and second.is_floating_point() and is_rounded(first, second):
        half = next((t for t in _HALF if torch.equal(first.to(t).float(), second.float())), None)
        return ROUNDED if half is None else f"{ROUNDED} to {str(half).removeprefix('torch.')}"
    low, high = found.reference_min or 0.0, found.reference_max or 0.0
    value = second.flatten()[0]
    if low != high and bool((second == value).all()):
        return f"is {value.item() + 0.0:g} everywhere, the reference's is not constant"
    rows = RowDifferences(first, second, rounding * (high - low if low != high else abs(high)))
    if len(rows.rows) > 1 and rows.is_permuted():
        return "has the reference's rows in another order"
    for dtype in _HALF:
        if first.dtype is torch.float32 and torch.equal(first.to(dtype).float(), second.float()):
            return f"{ROUNDED} to {str(dtype).removeprefix('torch.')}"
    order = "has the reference's values in another order" if rows.is_shuffled() else ""
    if first.dim() == 2 and len(rows.rows) > 1:
        columns = RowDifferences(first.t(), second.t(), rows.limit, kind="columns")
        rows = min(rows, columns, key=RowDifferences.share)
    if not rows.is_everywhere():
        return f"{order}: {rows.words()}" if order else rows.words()
    shift = float((second.double() - first.double()).mean())
    if bool(
        ((second.double() - first.double() - shift).abs() <= rounding * max(abs(low), abs(high), abs(shift))).all()
    ):
        return f"is the reference's {'plus' if shift > 0 else 'minus'} {abs(shift):.6g}"
    factor = rows.factor() if found.cosine is not None and 1 - found.cosine**2 <= rounding else None
    if factor is not None:
        return "has the opposite sign" if factor == -1 else f"is {factor:.6g} times the reference's"
    if first.dim() > 1:
        for part, turned in (("row", False), ("column", True)):
            sides = [t.flatten(1).t() if turned else t for t in (first, second)]
            if RowDifferences(sides[0], sides[1], rows.limit).have_factors():
                return f"is the reference's with a factor of its own for each {part}"
    if first.dim() == 2 and first.shape[0] == first.shape[1] and torch.equal(first.t(), second):
        return "is the reference's transposed"
    if first.dim() > 1 and torch.equal(*(t.flatten(1).sort(1).values for t in (first, second))):
        return "has the reference's columns in another order"
    if order:
        return order
    noise = _UNRELATED / math.sqrt(first.numel())
    if first.numel() >= _ENOUGH_ELEMENTS and found.cosine is not None and abs(found.cosine) <= noise:
        return f"is unrelated to the reference's: never loaded, or in another basis{rows.emptied()}"
    # No figure: repeated layers with one fault are recognised by the same words.
    return f"differs everywhere{rows.emptied()}"
