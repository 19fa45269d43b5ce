"""What differs between two modules without running them: parameters, buffers, plain attributes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from qtrace.stats import NoValues, measure, plain
from qtrace.tolerance import rounding_tolerance

_PLAIN = (bool, int, float, str)
_MOST_ROWS = 4


def static_differences(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Yield what differs, in words: "eps 1e-06 against 1e-05", "weight differs in 1 of 64 rows (17: opposite sign)".

    `candidates` are the candidate's modules that answer to this one, a wrapper and what is inside it; a name is
    looked for in each. What only one side has is no difference: wrappers keep things under other names.
    """
    yield from _attributes(reference, candidates)
    for kind in ("_parameters", "_buffers"):
        for name, mine in getattr(reference, kind).items():
            theirs = next((getattr(c, kind)[name] for c in candidates if getattr(c, kind).get(name) is not None), None)
            if mine is not None and theirs is not None:
                yield from _tensors(name, mine, theirs)


def _attributes(reference: torch.nn.Module, candidates: Sequence[torch.nn.Module]) -> Iterator[str]:
    for name, mine in vars(reference).items():
        if name.startswith("_") or not _is_plain(mine):
            continue
        for candidate in candidates:
            theirs = vars(candidate).get(name)
            if name in vars(candidate) and _is_plain(theirs):
                if mine != theirs:
                    yield f"{name} {mine} against {theirs}"
                break


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value))


def _tensors(name: str, reference: torch.Tensor, candidate: torch.Tensor) -> Iterator[str]:
    if reference.shape != candidate.shape:
        yield f"{name} {list(reference.shape)} against {list(candidate.shape)}"
        return
    try:
        first, second = plain(reference), plain(candidate)
        found = measure(first, second).result()
    except NoValues:
        return
    rounding = rounding_tolerance((first.dtype, second.dtype), 0)
    if found.max == 0 or (found.peir is not None and found.peir <= rounding):
        return
    yield f"{name} {_rows(first, second, rounding)}"


def _rows(first: torch.Tensor, second: torch.Tensor, rounding: float) -> str:
    """Say where along the first axis two tensors of one shape differ."""
    if first.dim() == 0 or first.shape[0] < 2:
        return "differs"
    mine, theirs = (t.detach().double().reshape(t.shape[0], -1).cpu() for t in (first, second))
    apart = (mine - theirs).abs().amax(1)
    limit = rounding * float(mine.max() - mine.min())
    rows = [int(i) for i in (~(apart <= limit)).nonzero().flatten()]
    if len(rows) == first.shape[0] or not rows:
        return "differs everywhere"
    named = []
    for row in rows[:_MOST_ROWS]:
        opposite = bool((mine[row] + theirs[row]).abs().amax() <= limit)
        named.append(f"{row}: opposite sign" if opposite else str(row))
    more = ", …" if len(rows) > _MOST_ROWS else ""
    what = "rows" if first.dim() > 1 else "entries"
    return f"differs in {len(rows)} of {first.shape[0]} {what} ({', '.join(named)}{more})"
