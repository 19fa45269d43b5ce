"""The manifest of a stored trace: its records, and how they are written and read. Free of torch.

A trace is a folder:

    manifest.json       what ran, call by call; names of tensors, and where each lies
    manifest.sha256     the manifest's digest, as `sha256sum` writes it
    tensors-00001.safetensors, …   the tensors, each once

A tensor is named by the SHA-256 of its dtype, shape and bytes; a shard's digest is that of its header, which holds
those names. So the manifest's digest vouches for every byte of the folder that a number is made of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qtrace.errors import SourceError
from qtrace.records import Side, TensorSpec

SCHEMA = "qtrace-trace/1"
MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
# Bytes of an element, by the name that safetensors has for its dtype.
WIDTHS = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
_FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
# (file, line, function)
Line = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of the folder; `spec` is what the model had, `dtype` (safetensors' name) and `shape` what is stored.

    The two differ under `--as`, for a sketch, and for a subclass, which is stored by the numbers that it stands for.
    `offset` counts from the end of the shard's header; `shard` is None where there were no values to read. `mean`,
    `stddev` and `non_finite` are known of sketches only, as are `min` and `max` of the spec.
    """

    spec: TensorSpec
    dtype: str = ""
    shape: tuple[int, ...] = ()
    digest: str = ""
    shard: int | None = None
    offset: int = 0
    bytes: int = 0
    mean: float | None = None
    stddev: float | None = None
    non_finite: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLeaf:
    """One leaf of a nested value: the number of a tensor, or a plain value (see `qtrace.store.leaf`)."""

    path: str
    tensor: int | None = None
    plain: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    """A nested value by its leaves; `object` numbers the objects, such as caches, that several calls are handed."""

    leaves: tuple[StoredLeaf, ...] = ()
    object: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCall:
    """One call, in the order of entry.

    `parent` is the number of the call that it ran inside, `caller` that one's module. `entry` and `order` count the
    calls that the model had left when this one was entered and left. `positional` and `passed` are the names of its
    arguments that were given by position, and that were given at all. `error` is what it raised where the model went
    on.
    """

    module: str
    type: str
    call: int
    caller: str
    entry: int
    order: int
    parent: int | None = None
    arguments: dict[str, StoredValue] = field(default_factory=dict)
    positional: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    outputs: StoredValue = StoredValue()
    site: Line | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParameter:
    """A parameter or buffer by what it is, and the digest of its values; None where it has none to read."""

    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSignature:
    """The parameters of a module's forward, as `qtrace.probe.Signature` has them."""

    positional: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModule:
    """One module of the tree; one that stands in several places is told at the first, and `alias_of` names that.

    `attributes` are the plain ones, the wrapper's name for the float module among them; `functions` are those that hold
    a function, by its qualified name. `forward` is where the code of its forward begins.
    """

    path: str
    type: str
    alias_of: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, StoredParameter | None] = field(default_factory=dict)
    buffers: dict[str, StoredParameter | None] = field(default_factory=dict)
    signature: StoredSignature = StoredSignature()
    forward: Line | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInput:
    """A leaf of one sample, as a report tells of it: its name, what it is, a digest, and its first values."""

    sample: int
    name: str
    spec: TensorSpec
    digest: str | None = None
    values: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """One run of the model: its calls, what another entry than forward returned, and calls that were not seen."""

    calls: tuple[StoredCall, ...] = ()
    returned: StoredValue | None = None
    unseen: tuple[tuple[str, str, int], ...] = ()
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of tensors: its size, the size of its header, and the SHA-256 of that."""

    file: str
    bytes: int
    header: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that a trace tells beside the elements of its tensors.

    `modules` are those of the whole model, `selected` the paths of those whose calls are told (the root always);
    `arguments` says whether these are told with their arguments, `sketches` whether the tensors are samples only.
    `draws_random` says that the model drew random numbers while it ran.
    """

    qtrace: str
    created: str
    environment: dict[str, Any]
    model: Side
    call: str = "forward"
    arguments: bool = True
    sketches: bool = False
    cast: str | None = None
    draws_random: bool = False
    selected: tuple[str, ...] = ()
    modules: tuple[StoredModule, ...] = ()
    inputs: tuple[StoredInput, ...] = ()
    samples: tuple[StoredSample, ...] = ()
    tensors: tuple[StoredTensor, ...] = ()
    shards: tuple[Shard, ...] = ()
    warnings: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def stored_bytes(self) -> int:
        """Return the size of all tensors that are stored."""
        return sum(tensor.bytes for tensor in self.tensors if tensor.shard is not None)


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
        plain = json.loads(text)
    except ValueError as error:
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
    for problem in _contradictions(manifest):
        raise damaged(path, problem)
    return manifest


_READER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise damaged(path, "it is missing: this is no trace, or a part of one") from None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or type(error).__name__}; the trace cannot be read") from error


def damaged(path: Path, why: str) -> SourceError:
    """Return the error for a file of a trace that is not as it was written."""
    return SourceError(f"{path}: {why}; the trace is not used, capture it again")


def _contradictions(manifest: Manifest) -> list[str]:
    """Return what in a manifest points outside of it, or does not add up; at most one sentence."""
    for number, shard in enumerate(manifest.shards):
        if not _FILE.fullmatch(shard.file) or not 8 <= shard.header <= shard.bytes:
            return [f"shards.{number}: {shard.file!r} with a header of {shard.header} of {shard.bytes} bytes"]
    for number, tensor in enumerate(manifest.tensors):
        if tensor.shard is None:
            continue
        if not 0 <= tensor.shard < len(manifest.shards):
            return [f"tensors.{number}: there is no shard {tensor.shard}"]
        shard = manifest.shards[tensor.shard]
        size = math.prod(tensor.shape) * WIDTHS.get(tensor.dtype, -1)
        fits = tensor.offset >= 0 and tensor.offset + tensor.bytes <= shard.bytes - shard.header
        if any(n < 0 for n in tensor.shape) or size != tensor.bytes or not fits:
            return [
                f"tensors.{number}: {tensor.dtype} {list(tensor.shape)} in {tensor.bytes} bytes at {tensor.offset} "
                f"does not fit into {shard.file} of {shard.bytes} bytes"
            ]
    known: set[str] = set()
    for number, module in enumerate(manifest.modules):
        if module.alias_of is not None and module.alias_of not in known:
            return [f"modules.{number}: there is no module {module.alias_of!r} before it"]
        known.add(module.path)
    for place, sample in enumerate(manifest.samples):
        for number, call in enumerate(sample.calls):
            where = f"samples.{place}.calls.{number}"
            if call.module not in known:
                return [f"{where}: there is no module {call.module!r}"]
            if call.parent is not None and not 0 <= call.parent < number:
                return [f"{where}: its parent is call {call.parent}, which does not come before it"]
            leaves = [leaf for value in (*call.arguments.values(), call.outputs) for leaf in value.leaves]
            if any(leaf.tensor is not None and not 0 <= leaf.tensor < len(manifest.tensors) for leaf in leaves):
                return [f"{where}: it names a tensor that is not there"]
    return []


def _plain(value: Any) -> Any:
    """Return a record as JSON types, without the fields that are as they are by default anyway."""
    if dataclasses.is_dataclass(value):
        named = {f.name: (getattr(value, f.name), f) for f in dataclasses.fields(value)}
        return {name: _plain(held) for name, (held, f) in named.items() if name == "schema" or not _is_default(held, f)}
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, (list, tuple)) else value


def _is_default(value: Any, of: dataclasses.Field[Any]) -> bool:
    if of.default_factory is not dataclasses.MISSING:
        return bool(value == of.default_factory())
    return of.default is not dataclasses.MISSING and type(value) is type(of.default) and bool(value == of.default)
