"""Describes values at a stop in lines: a leaf on each side, the distance of the two, the pattern of a mask."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qtrace.debug.stop import NAMES
from qtrace.engine.events import MISSING, argument_leaves
from qtrace.engine.pair import Pair, PairComparer, spec_of
from qtrace.numerics import NoValues, describe, plain
from qtrace.numerics.relations import FILL
from qtrace.numerics.relations.mask import blocked_entries
from qtrace.report.records import Statistics, Status, TensorSpec
from qtrace.report.text import cosine, decibels, number, share
from qtrace.traces.excerpt import Sketch

_MOST = 1 << 26


def mask_words(tensor: torch.Tensor) -> str | None:
    """Return the kind of mask that a tensor is; None for a tensor that is no mask.

    A mask is additive (floats, with a fill below -1e4 where nothing is let through), bool (True lets through), or holds
    only 0 and 1. A mask with one value throughout is described by this value.

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

    None where it has no name: then 0 and 1 may mean anything.
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
    # Padding blocks all keys from some key on, or up to some key.
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


Agrees = Callable[[Pair], bool]


def judged(pair: Pair | None, reference: Any, candidate: Any, *, agrees: Agrees) -> Iterator[str]:
    """Yield the distance of two leaves, and their relation; `pair` is None for two equal plain values."""
    if pair is None:
        # None and False, for example, are no fault, but they are not the same.
        yield "equal" if type(reference) is type(candidate) else "counts as equal"
        return
    tensors = [leaf for leaf in (reference, candidate) if isinstance(leaf, torch.Tensor)]
    # The few elements of a sketch do not show layouts and patterns.
    are_whole = not any(isinstance(leaf, Sketch) for leaf in tensors)
    masks = _masks(reference, candidate) if len(tensors) == len(NAMES) and are_whole else ""
    if pair.measurement is None:
        if pair.status is Status.SHAPE_MISMATCH:
            yield f"shapes differ; {masks or 'no layout makes one of the other'}" if are_whole else "shapes differ"
        elif len(tensors) == 1:
            yield f"only the {NAMES[not isinstance(reference, torch.Tensor)]} has a tensor"
        else:
            yield "not comparable: one of the two has no values to read" if tensors else "values differ"
        return
    found = pair.statistics()
    if found.max == 0 and found.non_finite is None:
        words = "equal" if pair.layout is None else f"equal, in another {pair.layout}"
        yield words if are_whole else f"{words}, as far as a sketch tells"
        return
    yield from measured(found)
    if pair.relation is not None:
        yield str(pair.relation) + _remaining(pair)
    if masks:
        yield masks
    if agrees(pair):
        yield "the same up to rounding"
    elif pair.relation is None and not masks and are_whole:
        yield "no relation between the two is known"


def measured(found: Statistics) -> Iterator[str]:
    """Yield the statistics of |reference - candidate| in two lines, and differences that numbers do not express."""
    yield "  ".join(
        [
            "|reference - candidate|",
            *(f"{name} {number(getattr(found, name))}" for name in ("mean", "min", "max", "stddev")),
        ]
    )
    parts = [f"PEIR {number(found.peir)}", f"SQNR {decibels(found.sqnr_db)} dB", f"cosine {cosine(found.cosine)}"]
    if found.mismatch is not None:
        parts.append(f"{share(found.mismatch, 1)} of elements differ")
    if found.non_finite is not None:
        parts.append("non-finite {}/{}".format(*found.non_finite))
    elif found.status is not Status.COMPARED:
        parts.append(found.status.value.replace("_", " "))
    yield "  ".join(parts)


def described(leaf: Any) -> tuple[str, str, str]:
    """Return a leaf's dtype, shape and range; for a plain value its description."""
    spec = leaf.spec if isinstance(leaf, Sketch) else spec_of(leaf)
    if leaf is MISSING or spec is None:
        return "not there", "", ""
    if not isinstance(leaf, torch.Tensor):
        return spec.value or spec.type, "", ""
    low_high = ""
    try:
        summary = leaf.summary if isinstance(leaf, Sketch) else describe(leaf)
        low_high = f"min {_bound(summary.min)} max {_bound(summary.max)}"
        low_high += f", {summary.non_finite} not finite" if summary.non_finite else ""
        low_high += " (a sketch)" if isinstance(leaf, Sketch) else ""
    except NoValues:
        pass
    return str(spec.dtype), _shape(spec), low_high


def columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows of words as lines, with every column but the last as wide as its widest word."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{word:<{width}}" for word, width in zip(row, widths, strict=True) if width]
        yield "  ".join(cells).rstrip()


def _shape(spec: TensorSpec) -> str:
    return "" if spec.shape is None else f"[{','.join(map(str, spec.shape))}]"


def _bound(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if not value.is_integer() or abs(value) >= 1e9 else f"{value:.0f}"


def _masks(reference: torch.Tensor, candidate: torch.Tensor) -> str:
    """Return the kinds of masks of the two, where at least one of them is a mask."""
    words = [mask_words(reference), mask_words(candidate)]
    if not any(word is not None and "mask" in word for word in words):
        return ""
    told = [f"{side} is {word}" for side, word in zip(NAMES, words, strict=True) if word is not None]
    if len(told) == len(NAMES):
        return f"{told[0]}, {told[1].replace(' is ', ' ', 1)}"
    return told[0]


def _remaining(pair: Pair) -> str:
    related = pair.peir_related()
    return (
        ""
        if related is None or pair.relation is None or pair.relation.kind == "layout"
        else f" (PEIR {number(related)} under it)"
    )


# Python's own names for an expression. `input` means the argument of a torch module, never the builtin.
BUILTINS = {name: value for name, value in vars(builtins).items() if name != "input"}
# Of more values than this, as in a whole config, equal plain values are only named, and only some of them.
_MOST_IN_FULL, _MOST_NAMED = 8, 6

Tolerance = Callable[[Pair], float]


@dataclass(frozen=True, slots=True)
class FoundValue:
    """A value of one side, and the place where its name was found."""

    value: Any
    place: str


def difference(
    reference: FoundValue, candidate: FoundValue, comparer: PairComparer, *, agrees: Agrees, tolerance: Tolerance
) -> Iterator[str]:
    """Yield an expression's value on each side, then the difference and the relation of each pair of leaves.

    Args:
        reference: the reference's value.
        candidate: the candidate's.
        comparer: compares two leaves.
        agrees: whether a pair is the same up to rounding.
        tolerance: the PEIR up to which elements of a pair agree.
    """
    leaf_pairs = argument_leaves("", reference.value, candidate.value)
    if not leaf_pairs:
        yield from columns(
            [(side, at.place, " ".join(repr(at.value).split())[:200]) for side, at in _sides(reference, candidate)]
        )
        return
    folded = []
    for path, mine, theirs in leaf_pairs:
        pair = comparer.compare(mine, theirs)
        if pair is None and len(leaf_pairs) > _MOST_IN_FULL:
            folded.append(path)
            continue
        if path:
            yield f"{path}:"
        at = zip(_sides(reference, candidate), (mine, theirs), strict=True)
        yield from columns([(side, found.place, *described(leaf)) for (side, found), leaf in at])
        if pair is not None and pair.measurement is not None and not agrees(pair):
            comparer.explain(pair, mine, theirs, tolerance(pair))
        yield from judged(pair, mine, theirs, agrees=agrees)
    if folded:
        rest = len(folded) - _MOST_NAMED
        yield f"equal: {', '.join(folded[:_MOST_NAMED])}" + (f" and {rest} more" if rest > 0 else "")


def _sides(reference: FoundValue, candidate: FoundValue) -> list[tuple[str, FoundValue]]:
    return list(zip(NAMES, (reference, candidate), strict=True))
