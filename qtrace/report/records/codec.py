"""Converts reports to JSON and back. JSON has no NaN or Inf: they become null, and the row's status says why."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from qtrace.errors import SourceError, did_you_mean
from qtrace.report.records.report import SCHEMA, Coverage, ReportData

T = TypeVar("T")
# Reads one value of JSON types; raises `_Damaged` where the value has another type than expected.
Reader = Callable[[Any], Any]


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

    Raises `SourceError`, naming `where` and the place, when the text is no JSON, is no report, or has another schema.
    """
    plain = parse(text, where)
    check_schema(plain, SCHEMA, where)
    return from_plain(ReportData, plain, where)


def parse(text: str, where: str) -> Any:
    """Return the value of JSON text; raises `SourceError`, naming `where`, line and column, for invalid text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise SourceError(f"{where}: not JSON at {place}: {error.msg}; write the file again") from None
    except RecursionError:
        raise SourceError(f"{where}: JSON that is nested too deeply; write the file again") from None


def check_schema(plain: Any, known: str, where: str) -> None:
    """Raise `SourceError` where `schema` is not the known `NAME/VERSION`; a newer version has a message of its own."""
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema == known:
        return
    name, _, version = known.partition("/")
    found = str(schema).partition("/")
    if found[0] == name and found[2].isdecimal() and int(found[2]) > int(version):
        from qtrace import __version__

        writer = plain.get("qtrace")
        by = f"qtrace {writer}" if isinstance(writer, str) else "a newer qtrace"
        raise SourceError(
            f"{where}: written by {by} under the schema {schema}; this is qtrace {__version__}, which reads {known}: "
            "upgrade qtrace"
        )
    said = "no schema is named" if schema is None else f"schema is {schema!r}"
    raise SourceError(f"{where}: {said}, this version reads {known!r}")


def from_plain(cls: type[T], plain: Any, where: str, *, strict: bool = False) -> T:
    """Build the record `cls` from JSON types, checking each field's type.

    Unknown keys are ignored, or with `strict` refused. Raises `SourceError`, naming `where` and the place inside.
    """
    try:
        return cast(T, _record(cast(Any, cls), strict)(plain))
    except _Damaged as damaged:
        place = "".join(reversed(damaged.keys)).removeprefix(".")
        raise SourceError(f"{where}: {place}: {damaged}" if place else f"{where}: {damaged}") from None


class _Damaged(Exception):
    """A value is not of the expected type; `keys` lead to it, the innermost first."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.keys: list[str] = []


@cache
def _record(cls: type[Any], strict: bool) -> Reader:
    """Return the reader of a record of this class."""
    hints = get_type_hints(cls)
    fields = [
        (
            f.name,
            _reader(hints[f.name], strict),
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    ]

    def read(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise _Damaged(f"expected a mapping, found {type(plain).__name__}")
        values = {}
        for name, reader, needed in fields:
            if name in plain:
                values[name] = _at(f".{name}", reader, plain[name])
            elif needed:
                raise _Damaged(f"the key {name!r} is missing")
        if strict and (unknown := plain.keys() - hints.keys()):
            key = min(unknown)
            raise _Damaged(f"unknown key {key!r}; {did_you_mean(key, hints)}")
        return cls(**values)

    return read


def _at(key: str, reader: Reader, plain: Any) -> Any:
    try:
        return reader(plain)
    except _Damaged as damaged:
        damaged.keys.append(key)
        raise


def _reader(hint: Any, strict: bool) -> Reader:
    """Return the reader of a value of the type `hint`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda plain: plain
    if origin in (Union, types.UnionType):
        inner = _reader(next(a for a in args if a is not type(None)), strict)
        return (lambda plain: None if plain is None else inner(plain)) if type(None) in args else inner
    if origin is tuple:
        return _tuple(args, strict)
    if origin is dict:
        return _mapping(_reader(args[1], strict))
    if dataclasses.is_dataclass(hint):
        return _record(cast(Any, hint), strict)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    return _scalar(hint)


def _tuple(args: tuple[Any, ...], strict: bool) -> Reader:
    repeated = _reader(args[0], strict) if len(args) == 2 and args[1] is Ellipsis else None
    each = [] if repeated is not None else [_reader(arg, strict) for arg in args]

    def read(plain: Any) -> Any:
        if not isinstance(plain, list):
            raise _Damaged(f"expected a list, found {type(plain).__name__}")
        readers = [repeated] * len(plain) if repeated is not None else each
        if len(readers) != len(plain):
            raise _Damaged(f"expected {len(readers)} entries, found {len(plain)}")
        return tuple(
            [_at(f"[{i}]", reader, value) for i, (reader, value) in enumerate(zip(readers, plain, strict=True))]
        )

    return read


def _mapping(reader: Reader) -> Reader:
    def read(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise _Damaged(f"expected a mapping, found {type(plain).__name__}")
        return {str(k): _at(f".{k}", reader, v) for k, v in plain.items()}

    return read


def _enum(kind: type[Enum]) -> Reader:
    members = {member.value: member for member in kind}

    def read(plain: Any) -> Any:
        try:
            return members[plain]
        except (KeyError, TypeError):
            raise _Damaged(f"{plain!r} is none of {', '.join(map(str, members))}") from None

    return read


def _scalar(kind: type[Any]) -> Reader:
    def read(plain: Any) -> Any:
        if type(plain) is kind:
            return plain
        if kind is float and type(plain) is int:
            return float(plain)
        raise _Damaged(f"expected {kind.__name__}, found {type(plain).__name__}")

    return read
