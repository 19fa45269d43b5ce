"""Limits on a row's columns, and which of a policy's limits holds for a module."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from qtrace.patterns import matches

_WILD = re.compile(r"\*+|\?|\[!?[^\]]+\]")


@dataclass(frozen=True, slots=True)
class Limit:
    """One line of a policy: `key` is `max_…` or `min_…` and a row's column, `rule` says where it stands."""

    key: str
    value: float
    rule: str

    @property
    def column(self) -> str:
        """Return the column of a row that is limited."""
        return self.key[len("max_") :]

    @property
    def is_upper(self) -> bool:
        """Return whether the column may not exceed the limit; else it must reach it."""
        return self.key.startswith("max_")

    def is_kept(self, observed: float | None) -> bool:
        """Return whether a number keeps to the limit, which it may equal; NaN and no number do not.

        >>> limit = Limit("max_peir", 1e-4, "max_peir")
        >>> [limit.is_kept(observed) for observed in (1e-4, 1.1e-4, float("nan"), -1.0, None)]
        [True, False, False, False, False]
        """
        if observed is None:
            return False
        # What has an upper limit is a size or a ratio of sizes: less than nothing is no number of a run.
        return 0 <= observed <= self.value if self.is_upper else observed >= self.value

    def severity(self, observed: float | None) -> float:
        """Return how many times the limit is exceeded, infinite where no number tells.

        A ratio of amplitudes for every column: of an SQNR 10^(dB / 20), of a cosine (1 - observed) / (1 - limit).
        """
        if observed is None or math.isnan(observed) or (self.is_upper and observed < 0):
            return math.inf
        if self.column == "sqnr_db":
            return _amplitude(self.value - observed)
        if not self.is_upper:
            return _ratio(1 - observed, 1 - self.value)
        return _ratio(observed, self.value)


def limits_of(path: str, common: Mapping[str, float | None], overrides: Mapping[str, Overrides]) -> list[Limit]:
    """Return the limits that hold for a module path.

    For each column it is the one of the most specific override that matches the path and names the column, else the
    common one. An override in which it is None lifts the limit.
    """
    held: dict[str, Limit | None] = {key: _limit(key, value, key) for key, value in common.items()}
    fitting = [pattern for pattern in overrides if matches(pattern, path)]
    for pattern in sorted(fitting, key=specificity):
        for key, value in overrides[pattern].items():
            held[key] = _limit(key, value, f"overrides {pattern}: {key}")
    return [limit for limit in held.values() if limit is not None]


Overrides = Mapping[str, float | None]


def specificity(pattern: str) -> tuple[int, int, int]:
    """Return how closely a glob says which path it means; of two that are equal the later one in the policy wins.

    In this order: the most components without any wildcard, the most characters that stand for themselves, the
    fewest `**`.

    >>> sorted(["**", "**.qkv", "model.*.qkv", "model.visual.**"], key=specificity)
    ['**', '**.qkv', 'model.*.qkv', 'model.visual.**']
    """
    components = pattern.split(".")
    literal = sum(not _WILD.search(component) for component in components)
    return literal, len(_WILD.sub("", pattern)), -components.count("**")


def _limit(key: str, value: float | None, rule: str) -> Limit | None:
    return None if value is None else Limit(key, value, rule)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.inf


def _amplitude(decibels: float) -> float:
    """Return 10^(dB / 20), infinite where that is beyond a float."""
    try:
        return math.pow(10.0, decibels / 20)
    except OverflowError:
        return math.inf
