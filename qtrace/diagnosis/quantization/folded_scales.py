"""Finds what was multiplied into a weight before it was rounded: the scales of a norm, a rotation, gains of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtrace.diagnosis.quantization.effective_weight import float_values
from qtrace.diagnosis.tensor_differences import held_tensor
from qtrace.numerics.quantized import as_matrix, is_rounded

# What a transform must leave of a weight's difference to be considered.
_BETTER = 0.8
_WORST = 0.7
_TURNED = 0.25
# A gain is one beyond its uncertainty by so many standard deviations, and by so much.
_SIGMAS = 6.0
_LEAST_GAIN = 1e-4
_MOST = 0.5
# Few levels, and values cut off, take so much off a gain.
_NEAR = 0.05


@dataclass(frozen=True, slots=True)
class Unrounded:
    """A weight of the candidate as it was before it was rounded.

    `is_exact` says that only what is known without noise was multiplied in: nothing, or what norms and embeddings show.
    `fitted` tells in words which gains were fitted, empty where none were. `is_same` says that it is the reference's.
    `columns` are the scales of a norm that its columns were multiplied by.
    """

    weight: Tensor
    is_exact: bool
    fitted: str = ""
    is_same: bool = False
    columns: Tensor | None = None


class Folds:
    """What the candidate may have multiplied into weights, as its norms and embeddings show it without any rounding.

    A norm whose weight was divided by s hands on values divided by s, for the weights behind it to make up for. An
    embedding times a rotation turns the stream that all others read and write.
    """

    def __init__(self, pairs: Mapping[str, tuple[nn.Module, Sequence[nn.Module]]]) -> None:
        self._scales: list[tuple[str, Tensor]] = []
        self._rotation: Tensor | None = None
        for path, (mine, partners) in pairs.items():
            for partner in partners:
                ours, theirs = (float_values(held_tensor(side, "weight")) for side in (mine, partner))
                if ours is None or theirs is None or ours.shape != theirs.shape or torch.equal(ours, theirs):
                    continue
                if ours.dim() == 1:
                    self._take_scale(path, ours, theirs)
                elif isinstance(mine, nn.Embedding) and self._rotation is None:
                    self._rotation = _rotation_between(ours, theirs)

    def _take_scale(self, path: str, ours: Tensor, theirs: Tensor) -> None:
        for one in (0.0, 1.0):
            # Some norms multiply by 1 + weight.
            if bool(((theirs + one) != 0).all()):
                self._scales.append((path, (ours.double() + one) / (theirs.double() + one)))

    def before(self, path: str, weight: Tensor, rounded: Tensor, *, from_codes: bool = False) -> Unrounded | None:
        """Return a weight of the candidate as it was before its rounding; None where it is no rounding of any.

        Args:
            path: the reference's module that holds `weight`; norms near it are asked first.
            weight: the reference's, [out, in] or with more axes.
            rounded: the candidate's, of the same shape.
            from_codes: the candidate stores codes, see `is_rounded`.
        """
        if is_rounded(weight, rounded, from_codes=from_codes):
            return Unrounded(weight, True, is_same=True)
        columns, best = self.nearest(path, weight, rounded)
        if best is not weight and is_rounded(best, rounded, from_codes=from_codes):
            return Unrounded(best, True, columns=columns)
        fitted = _with_gains(best, rounded, from_codes)
        if fitted is None:
            return None
        values, words, is_everywhere = fitted
        return Unrounded(values, not is_everywhere, words)

    def nearest(self, path: str, weight: Tensor, rounded: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the scales and the weight, with what may have been multiplied into it, that come nearest.

        The weight as it is where nothing comes much nearer than it.
        """
        if weight.dim() < 2:
            return None, weight
        others = [(_distance(other, rounded), scale, other) for scale, other in self._transformed(path, weight)]
        far, scale, other = min(others, key=lambda one: one[0], default=(math.inf, None, weight))
        return (scale, other) if far < _BETTER * _distance(weight, rounded) else (None, weight)

    def _transformed(self, path: str, weight: Tensor) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Yield the weight with what may have been multiplied into it, after the scales of a norm that were."""
        columns, rows, weight = weight.shape[-1], weight.shape[-2], weight.double()
        near = sorted(
            ((name, scale) for name, scale in self._scales if len(scale) == columns),
            key=lambda named: -_shared(named[0], path),
        )
        turn = self._rotation
        turns = turn is not None and len(turn) == columns
        closest = [named for named in near if _shared(named[0], path) == _shared(near[0][0], path)] if near else []
        for _, scale in closest:
            scaled = weight * scale
            yield scale, scaled
            if turns and turn is not None:
                yield scale, scaled @ turn
        if turn is None:
            return
        if turns:
            yield None, weight @ turn
        if len(turn) == rows:
            yield None, turn.t() @ weight


def _rotation_between(ours: Tensor, theirs: Tensor) -> Tensor | None:
    """Return the orthogonal R with theirs = ours @ R (Schoenemann, 1966), None where there is none."""
    if len(ours) < ours.shape[1] or is_rounded(ours, theirs):
        return None
    left, _, right = torch.linalg.svd(ours.double().t() @ theirs.double())
    turn = left @ right
    off = (ours.double() @ turn - theirs.double()).norm() / theirs.double().norm()
    return turn if float(off) <= _TURNED else None


def _distance(one: Tensor, other: Tensor) -> float:
    return float((as_matrix(one) - as_matrix(other)).norm())


def _shared(name: str, path: str) -> int:
    """Return how many leading components two paths share; layers' numbers among them."""
    count = 0
    for one, other in zip(name.split("."), path.split("."), strict=False):
        if one != other:
            break
        count += 1
    return count


def _with_gains(weight: Tensor, rounded: Tensor, from_codes: bool) -> tuple[Tensor, str, bool] | None:
    """Return the weight with gains of its rows, its columns or of both fitted to the rounded one, and how in words.

    Return also whether most rows or columns have a gain of their own: then the rest of each is what its fit leaves.
    """
    mine, theirs = as_matrix(weight), as_matrix(rounded)
    if not float((theirs - mine).norm()) > 0 or not float(mine.norm()) > 0:
        return None
    whole, is_gain = _common_gain(mine, theirs)
    for gain in _likely(whole) if is_gain else ():
        values = (mine * gain).reshape(weight.shape)
        if is_rounded(values, rounded, from_codes=from_codes):
            return values.to(weight.dtype), f"times {gain:.4g}", False
    for axes in ((1,), (0,), (1, 0)):
        scaled, words, is_everywhere = mine, [], False
        for axis in axes:
            gains = _gains(scaled, theirs, axis)
            scaled = scaled * gains
            is_everywhere |= float((gains != gains.median()).double().mean()) > _MOST
            words += _gain_words(gains.flatten(), "row" if axis == 1 else "column")
        off = float((theirs - scaled).norm()) / max(float(theirs.norm()), 1e-300)
        values = scaled.reshape(weight.shape)
        if words and off <= _WORST and is_rounded(values, rounded, from_codes=from_codes):
            return values.to(weight.dtype), " and ".join(words), is_everywhere
    return None


def _gains(mine: Tensor, theirs: Tensor, axis: int) -> Tensor:
    """Return the gain of each row (axis 1) or column (axis 0), 1 where it is not visibly another."""
    energy = mine.square().sum(axis, keepdim=True)
    gains = torch.where(energy > 0, (mine * theirs).sum(axis, keepdim=True) / energy.clamp(min=1e-300), 1.0)
    rest = (theirs - mine * gains).square().mean(axis, keepdim=True)
    unsure = (rest / energy.clamp(min=1e-300)).sqrt()
    common = gains.median()
    spread = (gains - common).abs() <= _SIGMAS * unsure
    if bool(spread.all()):
        # One gain for all is known better than each.
        whole, is_gain = _common_gain(mine, theirs)
        return torch.full_like(gains, whole if is_gain else 1.0)
    return torch.where(_is_gain(gains, unsure), gains, torch.ones_like(gains))


def _likely(gain: float) -> Iterator[float]:
    """Yield the power of two that is near to a gain, as a wrong exponent makes it, and the gain."""
    if gain > 0:
        power = 2.0 ** round(math.log2(gain))
        if power != 1 and abs(power - gain) <= _NEAR * power:
            yield power
    yield gain


def _common_gain(mine: Tensor, theirs: Tensor) -> tuple[float, bool]:
    """Return the one gain for all values, and whether it is visibly another than 1."""
    energy = mine.square().sum()
    whole = (mine * theirs).sum() / energy
    unsure = ((theirs - mine * whole).square().mean() / energy).sqrt()
    return float(whole), bool(_is_gain(whole, unsure))


def _is_gain(gains: Tensor, unsure: Tensor) -> Tensor:
    """Return which gains are not 1, beyond what is unsure of them."""
    return (gains - 1).abs() > (_SIGMAS * unsure).clamp(min=_LEAST_GAIN)


def _gain_words(gains: Tensor, of: str) -> list[str]:
    other = (gains != 1).nonzero().flatten()
    if not len(other):
        return []
    if len(other) == len(gains) and bool((gains == gains[0]).all()):
        return [f"times {float(gains[0]):.4g}"]
    low, high = float(gains[other].min()), float(gains[other].max())
    if len(other) == 1:
        return [f"with {of} {int(other[0])} times {low:.4g}"]
    which = f"each {of}" if len(other) == len(gains) else f"{len(other)} of {len(gains)} {of}s"
    return [f"with a factor for {which}, {low:.4g} to {high:.4g}"]
