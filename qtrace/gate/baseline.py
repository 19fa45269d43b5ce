"""A baseline: the numbers and the environment of an earlier run, in a file that is easy to review."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtrace.errors import OutputError, SourceError, UsageError
from qtrace.report.records import ReportData, Side, Status, to_plain
from qtrace.report.records.codec import check_schema, from_plain, parse

SCHEMA = "qtrace-baseline/1"
FACTOR = 1.25
SLACK = 0.0
DIGITS = 3
Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRow:
    """The numbers of one output of one call, the worst of all samples.

    `peir` is the PEIR that the gate judges. `max` is present where a row that differs has neither PEIR nor relative L2
    (its reference is zero everywhere), `mismatch` where a side holds integers.
    """

    module: str
    call: int = 0
    output: str = ""
    status: Status = Status.COMPARED
    absorbed: bool = False
    peir: float | None = None
    rel_l2: float | None = None
    max: float | None = None
    mismatch: float | None = None
    floor: float | None = None

    @property
    def key(self) -> Key:
        """Return the key that identifies a row."""
        return self.module, self.call, self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """An earlier run's rows and environment, and how much worse a row may get before that is a regression.

    `factor` is a ratio of at least 1, `slack` an absolute amount in a column's own unit; both are finite, since
    infinite ones would permit anything. `source` is the file.
    """

    rows: tuple[BaselineRow, ...]
    environment: dict[str, str] = field(default_factory=dict)
    factor: float = FACTOR
    slack: float = SLACK
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise UsageError(f"the baseline's factor is {self.factor:g}; expected a finite number of at least 1")
        if not 0 <= self.slack < math.inf:
            raise UsageError(f"the baseline's slack is {self.slack:g}; expected a finite number that is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The contents of a baseline's file."""

    schema: str
    rows: tuple[BaselineRow, ...]
    environment: dict[str, str]
    factor: float = FACTOR
    slack: float = SLACK


def load_baseline(path: str | Path) -> Baseline:
    """Read a baseline.

    Raises:
        UsageError: there is no such file.
        SourceError: it cannot be read, is damaged (the place is named), or has another schema.
    """
    where = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such baseline: {where}; --update-baseline writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SourceError(f"{where}: cannot be read as a baseline ({reason})") from error
    plain = parse(text, where)
    check_schema(plain, SCHEMA, where)
    held = from_plain(_File, plain, where, strict=True)
    seen: set[Key] = set()
    for place, row in enumerate(held.rows):
        if row.key in seen:
            raise SourceError(f"{where}: rows[{place}]: a second line for {row.module or '<root>'}; keep one of them")
        seen.add(row.key)
    try:
        return Baseline(
            rows=held.rows, environment=held.environment, factor=held.factor, slack=held.slack, source=where
        )
    except UsageError as error:
        raise SourceError(f"{where}: {error}") from None


def save_baseline(baseline: Baseline, path: str | Path) -> None:
    """Write a baseline; raises `OutputError` where the file cannot be written."""
    try:
        Path(path).write_text(dump_baseline(baseline), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"baseline {path}: {reason}; nothing was written, choose another place") from error


def dump_baseline(baseline: Baseline) -> str:
    """Return the text of a baseline's file, ending with a newline."""
    head = {
        "schema": SCHEMA,
        "factor": baseline.factor,
        "slack": baseline.slack,
        "environment": baseline.environment,
    }
    rows = ",\n".join(f"  {json.dumps(_line(row), allow_nan=False)}" for row in sorted(baseline.rows, key=_place))
    opening = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{opening},\n "rows": [\n{rows}\n ]\n}}\n'


def rounded(row: BaselineRow) -> BaselineRow:
    """Return a row with its numbers rounded up to `DIGITS` significant digits."""
    numbers: dict[str, Any] = {
        name: _round_up(getattr(row, name)) for name in ("peir", "rel_l2", "max", "mismatch", "floor")
    }
    return dataclasses.replace(row, **numbers)


def _round_up(value: float | None) -> float | None:
    """Return the next number of `DIGITS` digits that is not smaller; without such a float, the number itself.

    >>> _round_up(4.1801e-07), _round_up(4.18e-07), _round_up(0.001), _round_up(None)
    (4.19e-07, 4.18e-07, 0.001, None)
    """
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS - 1}e}")
    if rounded < value:
        # One more in the last digit; at 9.99 that carries over.
        mantissa, exponent = f"{value:.{DIGITS - 1}e}".split("e")
        rounded = float(f"{float(mantissa) + 10.0 ** (1 - DIGITS):.{DIGITS - 1}f}e{exponent}")
    return rounded if math.isfinite(rounded) else value


def _line(row: BaselineRow) -> dict[str, Any]:
    """Return the contents of a row's line; default values are left out."""
    return {
        spec.name: value
        for spec in dataclasses.fields(row)
        if (value := to_plain(getattr(row, spec.name))) is not None
        and (spec.name == "module" or value != to_plain(spec.default))
    }


def _place(row: BaselineRow) -> tuple[list[tuple[int, int, str]], int, list[tuple[int, int, str]]]:
    """Return a sort key by which layer 10 comes after layer 2."""
    return _natural(row.module), row.call, _natural(row.output)


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


_SETTINGS = ("call", "tolerance", "noise_floor", "samples")


def fingerprint(report: ReportData) -> dict[str, str]:
    """Return the environment of a run as texts, by name, in a fixed order."""
    known = report.environment
    found: dict[str, Any] = {"qtrace": report.qtrace}
    found |= {name: known[name] for name in ("python", "machine", "threads", "seed") if name in known}
    versions = known.get("versions")
    found |= dict(sorted(versions.items())) if isinstance(versions, dict) else {}
    found |= {"reference": _side(report.reference), "candidate": _side(report.candidate)}
    found["inputs"] = _digest(report)
    found |= {name: report.settings[name] for name in _SETTINGS if name in report.settings}
    return {name: str(value) for name, value in found.items()}


def differences(report: ReportData, baseline: Baseline) -> tuple[str, ...]:
    """Return the differences from the baseline's environment, one sentence each."""
    now, then = fingerprint(report), baseline.environment
    return tuple(
        f"{name} is {now.get(name, 'not there')}, and was {then.get(name, 'not there')} in the baseline"
        for name in dict.fromkeys([*then, *now])
        if now.get(name) != then.get(name)
    )


def _side(side: Side) -> str:
    return " ".join(
        [side.type, ",".join(side.dtypes), ",".join(side.devices), *(["training"] if side.training else [])]
    )


def _digest(report: ReportData) -> str:
    """Return one digest of all the inputs' names, shapes and values."""
    digest = hashlib.sha256()
    for entry in report.inputs:
        digest.update(repr([entry.get("sample"), entry.get("name"), entry.get("digest")]).encode())
    return digest.hexdigest()[:16]
