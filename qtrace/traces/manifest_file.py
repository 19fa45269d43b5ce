"""`manifest.json` and its digest: how a manifest is written, and what is asked of one before it is believed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qtrace.errors import SourceError
from qtrace.traces.consistency import contradictions
from qtrace.traces.manifest import SCHEMA, Manifest

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"


def dump(manifest: Manifest) -> bytes:
    """Return the text of `manifest.json`."""
    return (json.dumps(_plain(manifest), allow_nan=False, separators=(",", ":")) + "\n").encode()


def digest_line(text: bytes) -> str:
    """Return the text of `manifest.sha256` for that of `manifest.json`."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n"


def load(folder: Path) -> Manifest:
    """Read and check the manifest of a trace; no tensor is read, and nothing but this file is trusted less for it.

    Raises:
        SourceError: there is no trace, or what is there is damaged or of another schema; the file and the reason are
            named.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        what = "it is a file, and a trace is a folder that" if folder.exists() else "no such folder;"
        raise SourceError(f"trace {folder}: {what} `qtrace capture` writes{'' if folder.exists() else ' one'}")
    text, stated = _read(path), _read(folder / DIGEST)
    if digest_line(text).encode() != stated:
        raise damaged(path, f"its SHA-256 is not the one in {DIGEST}: it was changed or cut off")
    try:
        plain = json.loads(text, parse_constant=_refuse, object_pairs_hook=_of_different_keys)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON ({error})") from None
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        by = plain.get("qtrace", "another version") if isinstance(plain, dict) else "something else"
        raise SourceError(
            f"{path}: its schema is {schema!r}, written by qtrace {by}, and this version reads {SCHEMA!r}; "
            "read it with that version, or capture again"
        )
    try:
        manifest = _READER.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged(path, f"{place}: {first['msg']}") from None
    for problem in contradictions(manifest):
        raise damaged(path, problem)
    return manifest


def damaged(path: Path, why: str) -> SourceError:
    """Return the error for a file of a trace that is not as it was written."""
    return SourceError(f"{path}: {why}; the trace is not used, capture it again")


_READER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def _read(path: Path) -> bytes:
    try:
        # Of a pipe or a device nobody knows the end.
        if path.exists() and not path.is_file():
            raise damaged(path, "it is no file")
        return path.read_bytes()
    except FileNotFoundError:
        raise damaged(path, "it is missing: this is no trace, or a part of one") from None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or type(error).__name__}; the trace cannot be read") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"it has no number {constant}")


def _of_different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


def _plain(value: Any) -> Any:
    """Return a record as JSON types, without the fields that are as they are by default anyway."""
    if dataclasses.is_dataclass(value):
        named = {f.name: (getattr(value, f.name), f) for f in dataclasses.fields(value)}
        return {name: _plain(held) for name, (held, f) in named.items() if name == "schema" or not _is_default(held, f)}
    if isinstance(value, dict):
        return {_text(key): _plain(held) for key, held in value.items()}
    if isinstance(value, str):
        return _text(value)
    return [_plain(held) for held in value] if isinstance(value, (list, tuple)) else value


def _text(text: str) -> str:
    """Return a text that UTF-8 can hold: half a surrogate pair, as in a file's name that is none, is spelt out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _is_default(value: Any, of: dataclasses.Field[Any]) -> bool:
    if of.default_factory is not dataclasses.MISSING:
        return bool(value == of.default_factory())
    return of.default is not dataclasses.MISSING and type(value) is type(of.default) and bool(value == of.default)
