"""Writes `manifest.json` and its digest, and reads a manifest after checking it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qtrace.errors import SourceError
from qtrace.traces.manifest import SCHEMA, WIDTHS, Manifest, StoredModule, StoredSample

_FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
# More elements than any tensor has.
_MOST = 1 << 62


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield each contradiction in words with its place; a manifest from `qtrace capture` has none."""
    yield from _shards(manifest)
    yield from _tensors(manifest)
    yield from _modules(manifest.modules)
    known = {module.path for module in manifest.modules}
    for place, sample in enumerate(manifest.samples):
        yield from _calls(f"samples.{place}", sample, known, len(manifest.tensors))


def _shards(manifest: Manifest) -> Iterator[str]:
    for number, shard in enumerate(manifest.shards):
        if not _FILE.fullmatch(shard.file) or not 8 <= shard.header <= shard.bytes:
            yield f"shards.{number}: {shard.file!r} with a header of {shard.header} of {shard.bytes} bytes"


def _tensors(manifest: Manifest) -> Iterator[str]:
    for number, tensor in enumerate(manifest.tensors):
        where = f"tensors.{number}"
        is_complex = (tensor.spec.dtype or "").startswith("complex") and tensor.dtype in ("F32", "F64")
        if not _is_shape(tensor.spec.shape):
            yield f"{where}: {list(tensor.spec.shape or ())} is no shape"
        if tensor.shard is None:
            continue
        if not 0 <= tensor.shard < len(manifest.shards):
            yield f"{where}: there is no shard {tensor.shard}"
            continue
        shard = manifest.shards[tensor.shard]
        size = math.prod(tensor.shape) * WIDTHS.get(tensor.dtype, -1)
        fits = tensor.offset >= 0 and tensor.offset + tensor.bytes <= shard.bytes - shard.header
        if not _is_shape(tensor.shape) or size != tensor.bytes or not fits:
            yield (
                f"{where}: {tensor.dtype} {list(tensor.shape)} in {tensor.bytes} bytes at {tensor.offset} "
                f"does not fit into {shard.file} of {shard.bytes} bytes"
            )
        elif is_complex and not manifest.sketches and tensor.shape[-1:] != (2,):
            yield f"{where}: {list(tensor.shape)} holds no pairs of a real and an imaginary part"


def _modules(modules: tuple[StoredModule, ...]) -> Iterator[str]:
    known: set[str] = set()
    # A module in a second place must be complete there, otherwise a module would be inside itself.
    complete: set[str] = set()
    for number, module in enumerate(modules):
        where = f"modules.{number}"
        if module.path in known:
            yield f"{where}: {module.path!r} was told before"
        if not complete.isdisjoint(_around(module.path)):
            yield f"{where}: {module.path!r} comes after the module around it was put in another place"
        known.add(module.path)
        if module.alias_of is not None:
            if module.alias_of not in known or module.alias_of in _around(module.path):
                yield f"{where}: there is no module {module.alias_of!r} before it"
            complete.add(module.alias_of)
        for name, held in {**module.parameters, **module.buffers}.items():
            if held is not None and not _is_shape(held.shape):
                yield f"{where}: {name} has {list(held.shape or ())}, which is no shape"


def _calls(place: str, sample: StoredSample, known: set[str], tensors: int) -> Iterator[str]:
    under_way: list[int] = []
    told: set[tuple[str, int]] = set()
    for number, call in enumerate(sample.calls):
        where = f"{place}.calls.{number}"
        if call.module not in known:
            yield f"{where}: there is no module {call.module!r}"
        if (call.module, call.call) in told:
            yield f"{where}: call {call.call} of {call.module!r} was told before"
        told.add((call.module, call.call))
        while under_way and under_way[-1] != call.parent:
            under_way.pop()
        if call.parent is not None and not under_way:
            yield f"{where}: its parent is call {call.parent}, which is not under way"
        under_way.append(number)
    values = [(number, value) for number, call in enumerate(sample.calls) for value in call.arguments.values()]
    values += [(number, call.outputs) for number, call in enumerate(sample.calls)]
    placed = [(f"{place}.calls.{number}", value) for number, value in values]
    if sample.returned is not None:
        placed.append((f"{place}.returned", sample.returned))
    for where, value in placed:
        if any(leaf.tensor is not None and not 0 <= leaf.tensor < tensors for leaf in value.leaves):
            yield f"{where}: it names a tensor that is not there"


def _around(path: str) -> Iterator[str]:
    """Yield a path and the paths of all modules around it, from the inside out."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _is_shape(shape: tuple[int, ...] | None) -> bool:
    """Return whether a tensor may have this shape; in an empty tensor, too, the other sizes must be in range."""
    return all(0 <= size < _MOST for size in shape or ()) and math.prod(shape or ()) < _MOST


MANIFEST, DIGEST = "manifest.json", "manifest.sha256"


def dump(manifest: Manifest) -> bytes:
    """Return the text of `manifest.json`."""
    return (json.dumps(_plain(manifest), allow_nan=False, separators=(",", ":")) + "\n").encode()


def digest_line(text: bytes) -> str:
    """Return the text of `manifest.sha256` for the text of `manifest.json`."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n"


def load(folder: Path) -> Manifest:
    """Read and check the manifest of a trace; no tensor and no other file but the digest is read.

    Raises:
        SourceError: there is no trace, or it is damaged or has another schema; the file and the reason are named.
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
    """Return the error for a file of a trace that has changed since it was written."""
    return SourceError(f"{path}: {why}; the trace is not used, capture it again")


_READER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def _read(path: Path) -> bytes:
    try:
        # A pipe or a device may have no end.
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
    """Return a record as JSON types, without the fields that have their default value."""
    if dataclasses.is_dataclass(value):
        named = {f.name: (getattr(value, f.name), f) for f in dataclasses.fields(value)}
        return {name: _plain(held) for name, (held, f) in named.items() if name == "schema" or not _is_default(held, f)}
    if isinstance(value, dict):
        return {_text(key): _plain(held) for key, held in value.items()}
    if isinstance(value, str):
        return _text(value)
    return [_plain(held) for held in value] if isinstance(value, (list, tuple)) else value


def _text(text: str) -> str:
    """Return a text that UTF-8 can hold; a lone surrogate, as in an undecodable file name, is escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _is_default(value: Any, of: dataclasses.Field[Any]) -> bool:
    if of.default_factory is not dataclasses.MISSING:
        return bool(value == of.default_factory())
    return of.default is not dataclasses.MISSING and type(value) is type(of.default) and bool(value == of.default)
