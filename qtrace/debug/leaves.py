"""Leaves of both sides in lines for a reader: what each is, how far apart the two are, how they are related."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from qtrace.debug.masks import mask_words
from qtrace.debug.stop import NAMES
from qtrace.engine.leaves import MISSING
from qtrace.engine.pair import Pair, spec_of
from qtrace.numerics import NoValues, describe
from qtrace.report.numbers import cosine, decibels, number, share
from qtrace.report.records import Statistics, Status, TensorSpec
from qtrace.traces.sketch import Sketch

Agrees = Callable[[Pair], bool]


def judged(pair: Pair | None, reference: Any, candidate: Any, *, agrees: Agrees) -> Iterator[str]:
    """Yield how far apart two leaves are, and how they are related; `pair` is None for two equal plain values."""
    if pair is None:
        # None and False, say, are no fault, and yet not the same.
        yield "equal" if type(reference) is type(candidate) else "counts as equal"
        return
    tensors = [leaf for leaf in (reference, candidate) if isinstance(leaf, torch.Tensor)]
    # A few elements say nothing of layouts and patterns.
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
    """Yield the statistics of |reference - candidate| in two lines, and what numbers do not tell."""
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
    """Return a leaf's dtype, shape and range; of a plain value what it is."""
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
    """Return what kinds of masks the two are, where one of them is a mask at all."""
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
