"""Where a user wants to stop: breakpoints and conditions, from words to a pair of models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qtrace.debug.breakpoints import Breakpoint, Place, parse_place, resolve
from qtrace.debug.condition import Condition, is_condition
from qtrace.engine.model import Model


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to stop, before there is a model: at places, and at calls of which a row satisfies a condition."""

    places: tuple[Place, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.places or self.conditions)

    def breakpoints(self, reference: torch.nn.Module) -> list[Breakpoint]:
        """Return the breakpoints in a reference; raises `UsageError` for a glob that matches none of its modules."""
        model = Model("reference", reference)
        paths = {**{path: path for path in model.modules}, **model.aliases}
        return [resolve(place, paths) for place in self.places]


def wanted(places: Iterable[str], conditions: Iterable[str]) -> Wanted:
    """Return what `--break` and `--break-when` ask for; raises `UsageError` for what is malformed."""
    return Wanted(tuple(map(parse_place, places)), tuple(map(Condition, conditions)))


def wanted_in_python(breakpoints: Iterable[str]) -> Wanted:
    """Return what `trace(breakpoints=[…])` asks for: what compares is a condition, all else a place."""
    texts = [breakpoints] if isinstance(breakpoints, str) else list(breakpoints)
    option = "breakpoints"
    return Wanted(
        tuple(parse_place(text, option) for text in texts if not is_condition(text)),
        tuple(Condition(text, option) for text in texts if is_condition(text)),
    )
