"""Report to JSON and back. JSON has no NaN or Inf: such numbers become null, and the row's status says why."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from enum import Enum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from qtrace.errors import SourceError
from qtrace.records.report import SCHEMA, Coverage, ReportData

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Return `value` as JSON types: records as mappings, enums as their strings, NaN and Inf as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Coverage):
            plain["fraction"] = value.fraction
        return plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)


def dumps(report: ReportData) -> str:
    """Return the report as JSON text, ending with a newline."""
    return json.dumps(to_plain(report), indent=1, allow_nan=False) + "\n"


def loads(text: str, *, where: str = "report") -> ReportData:
    """Return the report that `text` holds.

    Raises `SourceError`, naming `where` and the place, when the text is no JSON, is no report, or was written
    under another schema.
    """
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{where}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}; write the report again"
        ) from None
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        raise SourceError(f"{where}: schema is {schema!r}, this version reads {SCHEMA!r}")
    return _from_plain(ReportData, plain, where)


def _from_plain(cls: type[T], plain: Any, where: str) -> T:
    """Build the record `cls` from JSON types, checking each field's type; unknown keys are ignored."""
    if not isinstance(plain, dict):
        raise SourceError(f"{where}: expected a mapping, found {type(plain).__name__}")
    hints = get_type_hints(cls)
    values = {}
    for f in dataclasses.fields(cast(Any, cls)):
        if f.name in plain:
            values[f.name] = _value(hints[f.name], plain[f.name], f"{where}: {f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise SourceError(f"{where}: the key {f.name!r} is missing")
    return cls(**values)


def _value(hint: Any, plain: Any, where: str) -> Any:
    """Return `plain` as the type `hint`, or raise `SourceError` naming the place."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return plain
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        return _value(inner[0], plain, where)
    if origin is tuple:
        if not isinstance(plain, list):
            raise SourceError(f"{where}: expected a list, found {type(plain).__name__}")
        hints = [args[0]] * len(plain) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(hints) != len(plain):
            raise SourceError(f"{where}: expected {len(hints)} entries, found {len(plain)}")
        return tuple(_value(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, plain, strict=True)))
    if origin is dict:
        if not isinstance(plain, dict):
            raise SourceError(f"{where}: expected a mapping, found {type(plain).__name__}")
        return {str(k): _value(args[1], v, f"{where}.{k}") for k, v in plain.items()}
    if dataclasses.is_dataclass(hint):
        return _from_plain(typing.cast(Any, hint), plain, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(plain)
        except ValueError:
            known = ", ".join(str(m.value) for m in hint)
            raise SourceError(f"{where}: {plain!r} is none of {known}") from None
    if hint is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if not isinstance(plain, hint) or (isinstance(plain, bool) and hint is not bool):
        raise SourceError(f"{where}: expected {hint.__name__}, found {type(plain).__name__}")
    return plain
