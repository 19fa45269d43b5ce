"""Limits on a row's columns: the limit that holds for a module, and the number (or missing number) that it judges."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qtrace.patterns import matches
from qtrace.report.records import Argument, ReportData, Row, Status, TensorSpec, Verdict

# The numbers of equal tensors, also where their formulas divide 0 by 0.
_OF_EQUALS: Mapping[str, float] = {
    "mean": 0.0,
    "max": 0.0,
    "stddev": 0.0,
    "peir": 0.0,
    "peir_related": 0.0,
    "rel_l2": 0.0,
    "mismatch": 0.0,
    "sqnr_db": math.inf,
    "cosine": 1.0,
}
_NAMES = {
    "mean": "mean",
    "max": "max",
    "stddev": "stddev",
    "peir": "PEIR",
    "peir_related": "related PEIR",
    "peir_in": "received PEIR",
    "peir_local": "introduced PEIR",
    "rel_l2": "relative L2",
    "mismatch": "mismatch",
    "sqnr_db": "SQNR",
    "cosine": "cosine",
}
# Ratios that need an interval or a norm of the reference's.
_RELATIVE = frozenset({"peir", "peir_related", "rel_l2", "sqnr_db", "cosine"})
_FLOATING = ("float", "bfloat", "complex")
Call = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Reading:
    """The number that a limit judges, and in words its meaning or the reason why there is none.

    `column` differs from the limit's column where another column replaces it. `limit` is then the bound for that
    column, where it is not the limit itself.
    """

    column: str
    value: float | None
    words: str = ""
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """The facts of a report that decide how its rows are read.

    `named` are the modules in which findings show: those that are wrong, and those that receive a wrong argument.
    `unread` has, by call, the first argument that differs without a PEIR.
    """

    named: frozenset[str]
    unread: Mapping[Call, Argument]

    @classmethod
    def of(cls, report: ReportData) -> Context:
        """Return the context of a report's rows."""
        named = {path for one in report.findings for path in (one.callees or (one.module, *one.members))}
        unread: dict[Call, Argument] = {}
        for argument in report.arguments:
            if argument.peir is None:
                unread.setdefault((argument.module, argument.call), argument)
        return cls(frozenset(named), unread)


def column_name(column: str) -> str:
    """Return a column's name for users."""
    return _NAMES.get(column, column)


def numberless(row: Row) -> str | None:
    """Return why no number of a row measures the distance of its tensors; None where one does."""
    if row.status in (Status.SHAPE_MISMATCH, Status.STRUCTURE_MISMATCH):
        return f"{_spec(row.reference)} against {_spec(row.candidate)}: cannot be compared"
    if row.status is Status.REFERENCE_ONLY:
        return "the candidate has no such output"
    if row.status is Status.CANDIDATE_ONLY:
        return "the reference has no such output"
    if row.status is Status.NON_FINITE and not row.non_finite_same:
        counts = row.non_finite
        told = f": {counts[0]} elements of the reference's, {counts[1]} of the candidate's" if counts else ""
        return f"NaN or Inf at other places than the reference's{told}"
    return None


def is_void(row: Row) -> bool:
    """Return whether there is nothing to compare: no element at all, or no finite element on either side."""
    if any(number is not None for number in (row.max, row.peir, row.rel_l2)):
        return False
    if row.status is Status.NON_FINITE:
        return bool(row.non_finite_same)
    shape = row.reference.shape if row.reference is not None else None
    return row.status is Status.COMPARED and shape is not None and 0 in shape


def is_excused(row: Row, *, strict: bool) -> bool:
    """Return whether a row's error does not count because the call around it undoes it; `strict` excuses nothing.

    Around the model itself (module "") there is no call.
    """
    return row.verdict is Verdict.ABSORBED and row.module != "" and not strict


def is_integer(row: Row) -> bool:
    """Return whether both sides hold integers or bools."""
    dtypes = _dtypes(row)
    return bool(dtypes) and not any(dtype.startswith(_FLOATING) for dtype in dtypes)


def has_integers(row: Row) -> bool:
    """Return whether a side holds integers or bools, so that elements can be compared for equality."""
    return any(not dtype.startswith(_FLOATING) for dtype in _dtypes(row))


def error_of(row: Row, named: Collection[str]) -> float | None:
    """Return the PEIR that a row is judged by.

    It is `peir_related` where there is one, since a value in another convention is no error. Exceptions are the modules
    `named` by findings, and relations of the model's own output that nothing undoes, such as a factor.
    """
    return row.peir if row.module in named else row.error


def read(row: Row, column: str, limited: Collection[str], context: Context) -> Reading | None:
    """Return the number that a limit on `column` judges; None where another of the `limited` columns replaces it.

    - A constant reference has no interval, hence no PEIR: `max` replaces it where `max` is limited, else the relative
      L2 does.
    - A differing integer is wrong however small the ratio: `mismatch` replaces PEIR, and must not exceed 0, unless it
      has a limit of its own. Where no side holds integers there is no mismatch to limit.
    - `peir_in` does not cover arguments that differ without a number.
    """
    value: float | None = getattr(row, column)
    if column == "peir":
        value = error_of(row, context.named)
    elif column == "peir_related" and value is None:
        value = row.peir
    if value is None and row.max == 0:
        value = _OF_EQUALS.get(column)
    if column == "mismatch" and not has_integers(row):
        return None
    if column == "peir_in" and (found := context.unread.get((row.module, row.call))) is not None:
        told = f"{_spec(found.reference)} against {_spec(found.candidate)}"
        return Reading(column, None, f"receives another {found.argument}: {told}")
    if column == "peir" and is_integer(row) and "mismatch" not in limited and row.max != 0:
        words = "integers: one off is wrong; max_mismatch sets another limit"
        return Reading("mismatch", row.mismatch, words, limit=0.0)
    if value is not None or not (column in _RELATIVE and _is_constant(row)):
        return Reading(column, value, "" if value is not None else _why_none(row, column))
    if "max" in limited:
        return None
    if column in ("peir", "peir_related") and row.rel_l2 is not None:
        return Reading("rel_l2", row.rel_l2, "constant reference: relative L2 stands in for PEIR")
    return Reading(column, None, f"{_why_none(row, column)}; max_max would judge it")


def _is_constant(row: Row) -> bool:
    """Return whether PEIR is missing because the reference has no interval."""
    return row.status is Status.CONSTANT_REFERENCE or (row.status is Status.NON_FINITE and row.peir is None)


def _why_none(row: Row, column: str) -> str:
    name = column_name(column)
    if column == "peir_local":
        return f"no {name}: it was not measured; --local measures it"
    if column == "peir_in":
        return f"no {name}: no argument of the call has a PEIR"
    if column in _RELATIVE and _is_constant(row):
        return f"no {name}: the reference is constant"
    return f"no {name} was measured"


def _dtypes(row: Row) -> list[str]:
    return [spec.dtype for spec in (row.reference, row.candidate) if spec is not None and spec.dtype]


def _spec(spec: TensorSpec | None) -> str:
    return "nothing" if spec is None else str(spec)


_WILD = re.compile(r"\*+|\?|\[!?[^\]]+\]")


@dataclass(frozen=True, slots=True)
class Limit:
    """One line of a policy: `key` is `max_…` or `min_…` and a row's column, `rule` names the line's place."""

    key: str
    value: float
    rule: str

    @property
    def column(self) -> str:
        """Return the row's column that is limited."""
        return self.key[len("max_") :]

    @property
    def is_upper(self) -> bool:
        """Return whether the limit is a maximum; otherwise the column must reach it."""
        return self.key.startswith("max_")

    def is_kept(self, observed: float | None) -> bool:
        """Return whether a number keeps the limit, which it may equal; NaN and a missing number do not.

        >>> limit = Limit("max_peir", 1e-4, "max_peir")
        >>> [limit.is_kept(observed) for observed in (1e-4, 1.1e-4, float("nan"), -1.0, None)]
        [True, False, False, False, False]
        """
        if observed is None:
            return False
        # A column with an upper limit is a size or a ratio of sizes, so a negative number is invalid.
        return 0 <= observed <= self.value if self.is_upper else observed >= self.value

    def severity(self, observed: float | None) -> float:
        """Return how many times the limit is exceeded, infinite where there is no number.

        A ratio of amplitudes for every column: for an SQNR 10^(dB / 20), for a cosine (1 - observed) / (1 - limit).
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

    For each column it is the limit of the most specific override that matches the path and names the column, else the
    common limit. An override with None lifts the limit.
    """
    held: dict[str, Limit | None] = {key: _limit(key, value, key) for key, value in common.items()}
    fitting = [pattern for pattern in overrides if matches(pattern, path)]
    for pattern in sorted(fitting, key=specificity):
        for key, value in overrides[pattern].items():
            held[key] = _limit(key, value, f"overrides {pattern}: {key}")
    return [limit for limit in held.values() if limit is not None]


Overrides = Mapping[str, float | None]


def specificity(pattern: str) -> tuple[int, int, int]:
    """Return how specific a glob is; of two equally specific ones the later one in the policy wins.

    In this order: the most components without any wildcard, the most literal characters, the fewest `**`.

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
    """Return 10^(dB / 20), infinite where a float overflows."""
    try:
        return math.pow(10.0, decibels / 20)
    except OverflowError:
        return math.inf
