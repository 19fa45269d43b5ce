"""Says how a weight is wrong that is no rounding of the reference's: which hypothesis makes it one."""

from __future__ import annotations

import torch
from torch import Tensor

from qtrace.numerics.quantized import as_matrix, group_sizes, steps

# So much of the squared difference a hypothesis must explain.
_EXPLAINED = 0.6
# Of two sizes of groups, the larger one is meant where it explains this much of what the smaller one does.
_ALMOST = 0.9
# A row of the candidate is a certain row of the reference with a cosine above the one, and below the other times that
# to its own.
_ALIKE = 0.6
_UNLIKE = 0.5
_NEARLY_ALL = 0.9
_SOME = 0.1
_MOST_ROWS = 512
# A shift of whole steps, up to this part of one.
_WHOLE = 0.35
# Values this many times as far off as the others, where they are few.
_FAR = 6.0
_FEW = 0.05
_SHOWN = 3
# A rotation keeps all products of rows, up to the rounding.
_KEPT = 0.3
_TURNED = 0.5
_FOLLOWS = 0.2
_BEYOND = 1.05
# The squares of singular values fall by this factor where a matrix of low rank ends.
_DROP = 8.0
_MOST_SINGULAR = 4096
_SURELY = 6.0


def weight_fault(reference: Tensor, candidate: Tensor) -> str:
    """Return in words how a weight differs from the reference's by more than rounding.

    Args:
        reference: [out, in], or with more axes, of which the last ones are a row.
        candidate: the same shape; it is what a module computes with, whatever it stores.

    Tried are, in this order: zeros, rows or columns in another order, the transposed weight, values cut off, a shift of
    each group (a zero point), single values, single rows, a part of low rank (an adapter), a factor of each group (a
    scale), a rotation. Each must explain most of the squared difference.
    """
    mine, theirs = as_matrix(reference), as_matrix(candidate)
    bad = [int((~torch.isfinite(side)).sum()) for side in (mine, theirs)]
    if any(bad):
        return f"holds {bad[1]} values that are not finite, against {bad[0]} in the reference"
    if not bool(theirs.any()):
        return "is zero everywhere"
    for says in (_order, _turned, _cut, _shift, _single_values, _single_rows, _low_rank, _factors, _rotation):
        found = says(mine, theirs)
        if found:
            return found
    size = float((theirs - mine).norm() / mine.norm().clamp(min=1e-300))
    said = f"differs by {size:.2g} times its own size, which is no rounding of the reference's"
    likeness = float((mine * theirs).sum() / (mine.norm() * theirs.norm()).clamp(min=1e-300))
    # A chance likeness of n values is about 1/sqrt(n).
    if likeness > max(_FOLLOWS, _SURELY / mine.numel() ** 0.5):
        said += (
            f"; it follows the reference's (correlation {likeness:.2f}), as with scales or zero points of other groups"
        )
    return said


def bias_fault(reference: Tensor | None, candidate: Tensor) -> str | None:
    """Return in words how the bias that a module adds differs from the reference's; None where it does not visibly."""
    if reference is None or not bool(reference.any()):
        return "adds a bias, the reference has none" if bool(candidate.any()) else None
    if not bool(candidate.any()):
        return "adds no bias, the reference's is not zero"
    mine, theirs = reference.double(), candidate.double()
    if float((theirs - mine).norm()) <= _SOME * float(mine.norm()):
        return None
    factor = float((mine * theirs).sum() / mine.square().sum())
    is_scaled = float((theirs - factor * mine).norm()) <= _SOME * float(theirs.norm())
    return f"adds {factor:.4g} times the reference's bias" if is_scaled else "adds another bias than the reference"


def _order(mine: Tensor, theirs: Tensor) -> str | None:
    for kind, one, other in (("rows", mine, theirs), ("columns", mine.t(), theirs.t())):
        chosen = other[:_MOST_ROWS]
        cosines = _unit(chosen) @ _unit(one).t()
        best, place = cosines.max(1)
        own = cosines.diagonal()
        numbers = torch.arange(len(chosen), device=place.device)
        moved = (place != numbers) & (best > _ALIKE) & (own < _UNLIKE * best)
        known = float((best > _ALIKE).double().mean())
        if known >= _NEARLY_ALL and float(moved.double().mean()) >= _SOME and len(set(place.tolist())) == len(place):
            shown = ", ".join(f"{row} is {int(place[row])}" for row in moved.nonzero().flatten()[:_SHOWN].tolist())
            return f"has the reference's {kind} in another order ({shown}, …)"
    return None


def _unit(rows: Tensor) -> Tensor:
    size: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / size.clamp(min=1e-300)


def _turned(mine: Tensor, theirs: Tensor) -> str | None:
    if mine.shape[0] != mine.shape[1]:
        return None
    left = float((theirs - mine.t()).square().sum())
    return "is the reference's transposed" if _is_explained(left, theirs - mine) else None


def _cut(mine: Tensor, theirs: Tensor) -> str | None:
    """Return whether the values beyond some end are missing, in the whole or in each row."""
    for of, end in (("", theirs.abs().max()), (" in their rows", theirs.abs().amax(1, keepdim=True))):
        beyond = mine.abs() > _BEYOND * end
        left = (theirs - mine.sign() * torch.minimum(mine.abs(), end.expand_as(mine))).square().sum()
        if bool(beyond.any()) and _is_explained(float(left), theirs - mine):
            reach = f"{float(end.max()):.3g}, the reference's reach {float(mine.abs().max()):.3g}"
            return f"is cut off: {int(beyond.sum())} values lie beyond the ends{of}, at most {reach}"
    return None


def _is_explained(left: float, error: Tensor) -> bool:
    return left <= (1 - _EXPLAINED) * float(error.square().sum())


def _words(group: int, row: int) -> str:
    return "row" if group == row else f"group of {group}"


def _largest(explained: dict[int, float]) -> int | None:
    """Return the largest size of groups that explains nearly as much as any."""
    best = max(explained.values(), default=0.0)
    return next((size for size, part in explained.items() if part >= max(_EXPLAINED, _ALMOST * best)), None)


def _shift(mine: Tensor, theirs: Tensor) -> str | None:
    """Return whether each group is shifted as a whole, and by how many steps of its grid."""
    error = theirs - mine
    row, energy = error.shape[1], float(error.square().sum())
    means = {size: error.reshape(-1, size).mean(1) for size in group_sizes(row)}
    explained = {size: size * float(mean.square().sum()) / energy for size, mean in means.items()}
    for size, part in explained.items():
        whole = _whole_steps(means[size], steps(theirs.reshape(-1, size))) if part >= _EXPLAINED else 0
        if whole:
            count = "one step" if abs(whole) == 1 else f"{abs(whole)} steps"
            by = "one" if abs(whole) == 1 else str(abs(whole))
            high = "high" if whole > 0 else "low"
            return f"is {count} too {high} in each {_words(size, row)}: a zero point off by {by}"
    largest = _largest(explained)
    return None if largest is None else f"is shifted in each {_words(largest, row)}, as by another zero point"


def _whole_steps(shifts: Tensor, step: Tensor) -> int:
    """Return by how many steps nearly all groups are shifted, 0 where they are not by the same whole number."""
    counts = (shifts / step)[shifts != 0]
    whole = round(float(counts.median())) if len(counts) else 0
    return whole if whole and float(((counts - whole).abs() <= _WHOLE).double().mean()) >= _NEARLY_ALL else 0


def _factors(mine: Tensor, theirs: Tensor) -> str | None:
    """Return whether each group is the reference's by a factor of its own."""
    error = theirs - mine
    row, energy = error.shape[1], float(error.square().sum())
    gains, explained = {}, {}
    for size in group_sizes(row):
        one, other = mine.reshape(-1, size), theirs.reshape(-1, size)
        gain = (one * other).sum(1) / one.square().sum(1).clamp(min=1e-300)
        gains[size] = gain
        explained[size] = 1 - float((other - gain.unsqueeze(1) * one).square().sum()) / energy
    largest = _largest(explained)
    if largest is None:
        return None
    low, high = (float(gains[largest].quantile(share)) for share in (0.05, 0.95))
    if not low > 0:
        return None
    return f"is scaled by another factor in each {_words(largest, row)}, {low:.3g} to {high:.3g}: by other scales"


def _low_rank(mine: Tensor, theirs: Tensor) -> str | None:
    """Return whether the weights differ by a matrix of low rank, as that of an adapter is."""
    error = theirs - mine
    if max(error.shape) > _MOST_SINGULAR:
        return None
    energy = torch.linalg.svdvals(error).square()
    most = len(energy) // 4
    drops = energy[:most] / energy[1 : most + 1].clamp(min=1e-300)
    if not most or not float(drops.max()) >= _DROP:
        return None
    rank = int(drops.argmax()) + 1
    if float(energy[:rank].sum()) < _EXPLAINED * float(energy.sum()):
        return None
    return f"differs by a matrix of rank {rank}, as by an adapter that was not merged, or merged with another scale"


def _rotation(mine: Tensor, theirs: Tensor) -> str | None:
    """Return whether all rows, or all columns, are turned by one rotation: their products with one another stay."""
    if not float((theirs - mine).norm()) > _TURNED * float(mine.norm()):
        return None
    for side, one, other in (("input", mine, theirs), ("output", mine.t(), theirs.t())):
        rows = range(0, len(one), -(-len(one) // _MOST_ROWS))
        ours, turned = (t[rows.start : rows.stop : rows.step] for t in (one, other))
        products = ours @ ours.t()
        off = turned @ turned.t() - products
        if len(ours) > 1 and float(off.norm()) <= _KEPT * float(products.norm()):
            return f"is the reference's turned by a rotation of its {side}, which is not undone"
    return None


def _single_values(mine: Tensor, theirs: Tensor) -> str | None:
    error = (theirs - mine).abs()
    far = error > _FAR * error.median()
    share = float(far.double().mean())
    if not 0 < share <= _FEW or not _is_explained(float(error[~far].square().sum()), error):
        return None
    places = ", ".join(f"[{row}, {column}]" for row, column in far.nonzero()[:_SHOWN].tolist())
    return f"differs at {int(far.sum())} of {far.numel()} values by more than at the others ({places}, …)"


def _single_rows(mine: Tensor, theirs: Tensor) -> str | None:
    error = theirs - mine
    sizes = error.norm(dim=1)
    far = sizes > _FAR / 2 * sizes.median()
    if not 0 < int(far.sum()) <= len(far) // 2 or not _is_explained(float(error[~far].square().sum()), error):
        return None
    shown = ", ".join(map(str, far.nonzero().flatten()[:_SHOWN].tolist()))
    return f"differs beyond rounding in {int(far.sum())} of {len(far)} rows ({shown}, …)"
