"""Says what a cache of keys and values returns otherwise: of which layer, keys or values, for which tokens.

A cache is no module, and a call that is handed one returns nothing of it. What its `update` was given and what it
returned is seen on both sides: where the one agrees and the other does not, the cache itself is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qtrace.diagnosis.runner import Runner
from qtrace.engine.events import Bound, Call

# The relative L2 error up to which a token's keys agree, and that up to which they are a multiple.
_AGREES = 1e-4
_IS_MULTIPLE = 1e-3
_SHOWN = 4
_NAMES = ("keys", "values")


@dataclass(frozen=True, slots=True)
class _Update:
    """One call of `update` by a module, the reference's path of it; new and returned are keys and values."""

    module: str
    new: tuple[Tensor, Tensor]
    returned: tuple[Tensor, Tensor]


class CacheWatch:
    """A listener to one side that notes what each cache that a module is handed returns."""

    def __init__(self) -> None:
        self.updates: list[_Update] = []
        self._calls: list[Call] = []
        self._watched: dict[int, tuple[Any, dict[str, Any]]] = {}

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Watch the caches among the arguments."""
        self._calls.append(call)
        for value in arguments.values.values():
            if callable(getattr(value, "update", None)) and callable(getattr(value, "get_seq_length", None)):
                self._watch(value)

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Note that a module has run; those inside that raised have as well."""
        while self._calls and self._calls.pop() is not call:
            pass

    def _watch(self, cache: Any) -> None:
        if id(cache) in self._watched or hasattr(cache.update, "watch"):
            # Both models may be handed one cache.
            return
        own: Callable[..., Any] = cache.update

        def update(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
            new = keys.clone(), values.clone()
            returned = own(keys, values, *args, **kwargs)
            owner = next((call.key for call in reversed(self._calls) if call.key is not None), None)
            if owner is not None and len(returned) >= len(_NAMES):
                self.updates.append(_Update(owner, new, (returned[0].clone(), returned[1].clone())))
            return returned

        update.watch = self  # type: ignore[attr-defined]
        before = {"update": own} if "update" in getattr(cache, "__dict__", {}) else {}
        try:
            cache.update = update
        except (AttributeError, TypeError):
            # An object with slots, or a frozen one.
            return
        # The object is kept as well, so that no other gets its id.
        self._watched[id(cache)] = cache, before

    def end(self) -> None:
        """Give the caches back as they were."""
        for cache, before in self._watched.values():
            vars(cache).pop("update", None)
            vars(cache).update(before)


def takes_cache(module: torch.nn.Module) -> bool:
    """Return whether a module's forward names an argument for a cache."""
    return any("cache" in name or "past" in name for name in inspect.signature(type(module).forward).parameters)


def cache_faults(runner: Runner) -> dict[str, str]:
    """Return in words, by the reference's path of the module that asks, what a cache returns otherwise.

    Both models run once. Where a cache was given other keys or values, what it returns is no fault of its own.
    """
    watches = CacheWatch(), CacheWatch()
    try:
        runner.pass_without_forcing(watches)
    finally:
        for watch in watches:
            watch.end()
    found: dict[str, str] = {}
    steps: dict[str, int] = {}
    spoiled: set[tuple[str, str]] = set()
    for mine, theirs in zip(watches[0].updates, watches[1].updates, strict=False):
        if mine.module != theirs.module:
            break
        step = steps[mine.module] = steps.get(mine.module, -1) + 1
        for name, *pair in zip(_NAMES, mine.new, theirs.new, mine.returned, theirs.returned, strict=True):
            new, returned = (pair[0], pair[1]), (pair[2], pair[3])
            if not _are_comparable(*new) or not _are_comparable(*returned) or list(_differing(*new)):
                # From here on the cache holds what it was given wrongly.
                spoiled.add((mine.module, name))
            elif (mine.module, name) not in spoiled and mine.module not in found:
                tokens = list(_differing(*returned))
                if tokens:
                    found[mine.module] = _words(name, step, tokens, *returned)
    return found


def _are_comparable(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dim() >= 2


def _differing(one: Tensor, other: Tensor) -> Iterator[int]:
    """Yield the tokens, along the last axis but one, at which two tensors differ."""
    mine, theirs = (t.double().transpose(-2, 0).flatten(1) for t in (one, other))
    off = (mine - theirs).norm(dim=1)
    yield from (~(off <= _AGREES * mine.norm(dim=1))).nonzero().flatten().tolist()


def _words(name: str, step: int, tokens: list[int], mine: Tensor, theirs: Tensor) -> str:
    ours, other = (t.double().transpose(-2, 0)[tokens] for t in (mine, theirs))
    factor = float((ours * other).sum() / ours.square().sum().clamp(min=1e-300))
    is_multiple = float((other - factor * ours).norm()) <= _IS_MULTIPLE * float(other.norm())
    how = "zero" if not bool(other.any()) else f"{factor:.4g} times the reference's" if is_multiple else "others"
    count = mine.shape[-2]
    if len(tokens) == count:
        of = f"all {count} tokens"
    elif tokens == list(range(tokens[0], tokens[-1] + 1)):
        span = f"token {tokens[0]}" if len(tokens) == 1 else f"tokens {tokens[0]} to {tokens[-1]}"
        of = f"{span} of {count}"
    else:
        of = f"tokens {', '.join(map(str, tokens[:_SHOWN]))}{', …' if len(tokens) > _SHOWN else ''} of {count}"
    return f"its cache is given the same, but returns other {name} for {of}: {how} (update {step}, counted from 0)"
