"""Says whether one tensor is another one rounded: by what is seen of the difference, not by how it was made.

Rounding leaves a difference without structure. It has no mean and no slope against the values, in no row, no column
and no group; no element stands out; and no direction holds more of it than chance gives it. A fault leaves one of
these: a zero point off by one is a mean in each group, a wrong scale a slope, a permutation or a lost block both a
large difference and a slope.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A difference of this size is that of computing in float32.
_EXACT = 1e-6
# A difference of this size against the values: hardly more than the largest ones is left. At eight bits it is 0.01.
_LARGEST = 0.95
# Without a visible grid the difference must be smaller: three bits in groups.
_LARGEST_UNSEEN = 0.5
# A sum of n independent errors lies beyond so many standard deviations by chance in one row of 10^9.
_SIGMAS = 6.0
# Squares of such sums, in units of what chance gives them, are 1 on average.
_MOST_STRUCTURE = 2.0
# No error of a rounding stands out by more than this from its row and column.
_MOST_PEAK = 7.0
# The largest singular value of noise is sqrt(m) + sqrt(n); see Marchenko and Pastur, 1967.
_MOST_DIRECTION = 1.6
# A row so many times worse than the others is not rounded as they are.
_FAR = 4.0
# Of independent noise, in standard deviations below its kurtosis.
_SURELY = 3.0
_LEAST_KURTOSIS = 2.6
_SLIGHT = 0.03
_GROUPS = (256, 128, 64, 32, 16, 8)
# A group of so few levels says nothing.
_FEWEST = 8
# Levels for a value: with so few the nearest level is no chance, with so many it says nothing.
_FEW = 0.5
_MANY = 0.9
# Rows of small values: so few of them, and with no larger an error than the others have.
_NO_LARGER = 1.3
_FEW_ROWS = 0.1
# Elements that may lie beyond the ends of a grid, as a range that is cut off on purpose leaves them.
_MOST_CUT = 0.02
# A row that lies beyond its own levels is lost, and not cut off.
_MOST_OF_ROW = 0.5
# A slope of so much of a scope's squared error may be that of a rounded scale; so many standard deviations are chance.
_SMALL_SLOPE = 0.25
_SLACK = 3.0
# So few values may miss their nearest level by more, against the error of most scopes: a step is 3.5 times that.
_FEW_MISSED = 1e-2
_MISSED = 1.5
# What these may add to the error: a range that is chosen for the least error loses about as much as it wins.
_MOST_LOSS = 2.0
# So many elements are sorted; the cost of a larger tensor is that of reading it.
_ELEMENTS = 1 << 16
_FEWEST_ROWS = 64
_LONGEST_KERNEL = 16
_SLOPE = 0.05
_MOSTLY = 0.7
# A group that is off by one step has 3.6 times the error of a rounding.
_FAR_GROUP = 3.0
_GROUP = 32


def group_sizes(row: int) -> list[int]:
    """Return the sizes of the groups that a row of so many values may be rounded in, the whole row first."""
    return [row, *(group for group in _GROUPS if group < row and row % group == 0)]


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a weight as [rows, values of a row] in float64: all axes but the first (of experts, the first two).

    Three axes are those of experts where the last one is too long for a kernel.
    """
    is_experts = tensor.dim() == 3 and tensor.shape[2] >= _LONGEST_KERNEL
    return _rows(tensor, 2 if is_experts else min(tensor.dim() - 1, 1)).double()


def _rows(tensor: Tensor, axes: int) -> Tensor:
    return tensor.detach().reshape(math.prod(tensor.shape[:axes]), -1)


def is_rounded(reference: Tensor, candidate: Tensor, *, from_codes: bool = False) -> bool:
    """Return whether `candidate` is `reference` rounded.

    Args:
        reference: two axes or more, floating; the last axes belong to one row.
        candidate: the same shape.
        from_codes: that it was rounded is known, since it is made from codes. Then neither a grid need be seen nor the
            bound of the differences: a rotation that is undone again hides both.

    Two ways are enough. Either each value is the nearest one of the levels that are seen in its row or its group, and
    the differences have no mean and no slope there. Or the differences are small, and white in every way described
    above; such are the errors of GPTQ, whose values are not the nearest ones, and of scales that were undone again.
    A fault that is smaller than the rounding itself, in each row and in the whole, is not seen.

    Of a large tensor some rows are judged so, evenly spread; in the others no row and no group may then be off by more
    than these, and none by another slope.
    """
    if reference.shape != candidate.shape or reference.dim() < 2 or not reference.numel():
        return False
    # Three axes are those of a convolution, or of experts.
    return any(
        _are_rows_rounded(_rows(reference, axes), _rows(candidate, axes), from_codes)
        for axes in ((1, 2) if reference.dim() == 3 else (1,))
    )


def _are_rows_rounded(mine: Tensor, theirs: Tensor, from_codes: bool) -> bool:
    step = -(-len(mine) // max(_FEWEST_ROWS, _ELEMENTS // mine.shape[1]))
    if not _is_rounded(mine[::step].double(), theirs[::step].double(), from_codes):
        return False
    return step == 1 or not _is_mixed(mine.float(), theirs.float())


def _is_rounded(mine: Tensor, theirs: Tensor, from_codes: bool) -> bool:
    error = theirs - mine
    if not bool(torch.isfinite(error).all()):
        return False
    if bool((error.abs() <= _EXACT * theirs.abs().amax(1, keepdim=True)).all()):
        return True
    size = _rms(error) / max(_rms(mine), 1e-300)
    nearest = _nearest_of(mine, theirs)
    if nearest is not None and nearest <= _FEW:
        return size <= _LARGEST
    if not size <= _LARGEST_UNSEEN:
        return False
    if nearest is not None:
        return not _has_structure(mine, _without_peaks(error))
    is_grid = from_codes or _is_seen(theirs) or _is_bounded(error)
    return is_grid and not _has_structure(mine, error) and _is_white(mine, error)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _has_structure(mine: Tensor, error: Tensor) -> bool:
    """Return whether the differences have a mean or a slope against the values, in a row, a column or the groups."""
    sides = ((mine, error), (mine.t(), error.t())) if min(mine.shape) >= _FEWEST else ((mine, error),)
    for values, off in sides:
        count, size = values.shape[1], off.square().mean(1).sqrt()
        for found in (_means(off), _slopes(values, off)):
            out = _stands_out(found, count)
            # A few rows of small values are rounded to few levels, which leaves a slope but no larger an error.
            is_coarse = (size <= _NO_LARGER * size.median()) & (out.double().mean() <= _FEW_ROWS)
            if bool((out & ~is_coarse).any()):
                return True
    for group in group_sizes(mine.shape[1])[1:]:
        parts, off = mine.reshape(-1, group), error.reshape(-1, group)
        for found in (_means(off), _slopes(parts, off)):
            # Of many small groups the mean of the squares is known well, of a few it is not.
            allowed = 1 + (_MOST_STRUCTURE - 1) * max(1.0, 12 / math.sqrt(len(found)))
            if group * float(found.square().mean()) > allowed:
                return True
    return False


def _without_peaks(error: Tensor) -> Tensor:
    """Return the differences with those of cut-off values, which stand out from their row, as large as the others."""
    most = 4 * error.abs().median(1, keepdim=True).values
    return error.clamp(-most, most)


def _stands_out(cosines: Tensor, count: int) -> Tensor:
    """Return which cosines of `count` values are too large for chance, by Fisher's transformation."""
    return torch.atanh(cosines.abs().clamp(max=1 - 1e-12)) * math.sqrt(max(count - 3, 1)) > _SIGMAS


def _means(error: Tensor) -> Tensor:
    """Return the cosine between each row's differences and a constant."""
    size = error.square().sum(1).sqrt() * math.sqrt(error.shape[1])
    return torch.where(size > 0, error.sum(1) / size.clamp(min=1e-300), 0.0)


def _slopes(values: Tensor, error: Tensor) -> Tensor:
    """Return the cosine between each row's differences and its values.

    A slope below 0.03 is that of few levels: the nearest of them lies towards zero a little more often than not.
    """
    energy = values.square().sum(1)
    product = (values * error).sum(1)
    size = (energy * error.square().sum(1)).sqrt()
    slope = product / energy.clamp(min=1e-300)
    return torch.where((size > 0) & (slope.abs() > _SLIGHT), product / size.clamp(min=1e-300), 0.0)


def _nearest_of(mine: Tensor, theirs: Tensor) -> float | None:
    """Return how many levels a value has, where each is the nearest in its scope; None where some are not.

    A scope is the whole tensor, a row, or a group of a row. Of those that fit, that with the fewest levels counts.
    """
    sizes = (mine.numel(), *group_sizes(mine.shape[1]))
    found = [_are_nearest(mine.reshape(-1, size), theirs.reshape(-1, size)) for size in sizes]
    return min((levels for levels in found if levels is not None), default=None)


def _are_nearest(mine: Tensor, theirs: Tensor) -> float | None:
    levels, noise = _levels(theirs)
    place = torch.searchsorted(levels, mine.contiguous())
    last = levels.shape[1] - 1
    above = levels.gather(1, place.clamp(max=last))
    below = levels.gather(1, (place - 1).clamp(min=0))
    nearest = torch.minimum((above - mine).abs(), (mine - below).abs())
    missed = (theirs - mine).abs() - (nearest * (1 + 1e-3) + noise + _scale_slack(mine, theirs))
    most = _MISSED * float(_sizes(theirs - mine, 1).median())
    if float((missed > 0).double().mean()) > _FEW_MISSED or bool((missed > most).any()):
        return None
    gaps = levels.diff(dim=1)
    widest = gaps.amax(1, keepdim=True)
    beyond = (mine > levels[:, -1:] + widest) | (mine < levels[:, :1] - widest)
    if bool(beyond.any()):
        error, share = theirs - mine, beyond.double().mean(1)
        if not float(share.mean()) <= _MOST_CUT or not float(share.max()) <= _MOST_OF_ROW:
            return None
        if not _rms(error) <= _MOST_LOSS * _rms(error[~beyond]):
            return None
    few = (float((gaps > noise).sum(1).double().mean()) + 1) / levels.shape[1]
    # As many levels as values: nothing need be rounded, and each value is its own nearest.
    return few if few <= _MANY or _are_even(levels, noise) else None


def _scale_slack(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return by how much a value may miss its nearest level because the scale was rounded after the codes were made.

    Scales that are stored in few bits themselves, as in QLoRA's double quantization (Dettmers et al., 2023), move all
    levels of their scope by a slope, which is a small part of the rounding.
    """
    error, energy = theirs - mine, mine.square().sum(1, keepdim=True).clamp(min=1e-300)
    slope, size = (mine * error).sum(1, keepdim=True) / energy, error.square().sum(1, keepdim=True)
    # The rounding itself leaves a slope, so that of the scale is known up to the standard deviation of that one.
    unsure = (size / energy / mine.shape[1]).sqrt()
    is_small = slope.square() * energy <= _SMALL_SLOPE * size
    return torch.where(is_small, slope.abs() + _SLACK * unsure, 0.0) * mine.abs()


def _levels(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the levels seen in each row, sorted, and by how much two may differ by their own rounding and be one."""
    levels = values.sort(1).values.contiguous()
    return levels, _own_rounding(values) * levels.abs().amax(1, keepdim=True)


def steps(values: Tensor) -> Tensor:
    """Return the least distance between two levels of each row, [rows]; infinite where a row has only one."""
    levels, noise = _levels(values)
    return _gaps(levels, noise).amin(1)


def _gaps(levels: Tensor, noise: Tensor) -> Tensor:
    """Return the distances between neighbours among sorted levels, infinite for those that are one level."""
    gaps = levels.diff(dim=1)
    return torch.where(gaps > noise, gaps, torch.inf)


def _own_rounding(values: Tensor) -> float:
    """Return the relative rounding of the values as they are stored."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(dtype).double(), values):
            return torch.finfo(dtype).eps
    return 1e-6


def _is_seen(theirs: Tensor) -> bool:
    """Return whether the values lie on a grid in their row, or in groups of it: of few levels, or evenly."""
    for size in group_sizes(theirs.shape[1]):
        levels, noise = _levels(theirs.reshape(-1, size))
        few = (float((levels.diff(dim=1) > noise).sum(1).double().mean()) + 1) / size
        if few <= _FEW or (size >= 2 * _FEWEST and _are_even(levels, noise)):
            return True
    return False


def _is_bounded(error: Tensor) -> bool:
    """Return whether the differences end where those of a rounding do: their kurtosis is 1.8, that of noise is 3.

    Each row or group has a step of its own, so each is measured in its own RMS; that of n values of noise makes their
    kurtosis 3 n / (n + 2).
    """
    for size in group_sizes(error.shape[1]):
        even = error / _sizes(error, 0)
        even = even.reshape(-1, size)
        even = even / _sizes(even, 1)
        kurtosis = float(even.pow(4).mean()) / float(even.square().mean()) ** 2 * (size + 2) / size
        # The kurtosis of n values of noise is 3 with a standard deviation of sqrt(24 / n).
        if kurtosis <= max(3 - _SURELY * math.sqrt(24 / even.numel()), _LEAST_KURTOSIS):
            return True
    return False


def _are_even(levels: Tensor, noise: Tensor) -> bool:
    """Return whether sorted levels lie on an even grid in nearly every scope."""
    least = _gaps(levels, noise).amin(1, keepdim=True)
    held = torch.zeros(len(levels), dtype=torch.bool, device=levels.device)
    for parts in (1, 2, 3):
        step = least / parts
        places = (levels - levels[:, :1]) / step
        off = (places - places.round()).abs()
        fits = (off <= 0.05).all(1) & (places[:, -1] <= 4096) & torch.isfinite(step[:, 0])
        held |= fits
    return float(held.double().mean()) >= 0.9


def _is_white(mine: Tensor, error: Tensor) -> bool:
    """Return whether no element and no direction holds more of the differences than chance gives it."""
    if min(error.shape) < _FEWEST or _is_uneven(mine, error):
        return False
    even = error / _sizes(error, 1)
    even = even / _sizes(even, 0)
    if float(even.abs().max()) > _MOST_PEAK:
        return False
    rows, columns = even.shape
    largest = float(torch.linalg.matrix_norm(even[:4096, :4096].float(), 2))
    rows, columns = min(rows, 4096), min(columns, 4096)
    return largest <= _MOST_DIRECTION * (math.sqrt(rows) + math.sqrt(columns))


def _is_mixed(mine: Tensor, theirs: Tensor) -> bool:
    """Return whether a row or a group of 32 is off by far more than the others, or a row by a slope of its own."""
    error = theirs - mine
    if not bool(torch.isfinite(error).all()) or _is_uneven(mine, error):
        return True
    energy = mine.square().sum(1).clamp(min=1e-300)
    slopes = (mine * error).sum(1) / energy
    unsure = (error.square().mean(1) / energy).sqrt()
    off = slopes - slopes.median()
    # Few levels leave a slope as well, beside as much of an error that is none.
    is_gain = off.square() * energy > _MOSTLY * error.square().sum(1)
    if bool(((off.abs() > _SIGMAS * unsure + _SLOPE) & is_gain).any()):
        return True
    row = mine.shape[1]
    if row % _GROUP:
        return False
    size = error.reshape(len(mine), -1, _GROUP).square().mean(2).sqrt()
    far = size > _FAR_GROUP * size.median(1, keepdim=True).values
    largest = mine.reshape(len(mine), -1, _GROUP).abs().amax(2).clamp(min=1e-300)
    for width in group_sizes(row):
        # Where the grid is that of a wider group, one large value in it makes the rounding of all of them coarser.
        if width >= _GROUP and width % _GROUP == 0:
            wide = largest.reshape(len(mine), -1, width // _GROUP).amax(2)
            share = size / wide.repeat_interleave(width // _GROUP, 1)
            far &= share > _FAR_GROUP * share.median(1, keepdim=True).values
    return bool(far.any())


def _is_uneven(mine: Tensor, error: Tensor) -> bool:
    """Return whether a row is far off the others: by its error, and by that against its values and the largest of them.

    Columns may well be: a scale for each is multiplied in before the rounding, and divided out again.
    """
    size = error.square().mean(1).sqrt()
    shares = [size / of.clamp(min=1e-300) for of in (mine.square().mean(1).sqrt(), mine.abs().amax(1))]
    far = [found > _FAR * found.median() for found in (size, *shares)]
    return bool((far[0] & far[1] & far[2]).any())


def _sizes(error: Tensor, axis: int) -> Tensor:
    size = error.square().mean(axis, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)
