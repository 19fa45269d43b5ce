"""Writes a trace into a hidden folder, first tensors, then the manifest, and makes it visible by one rename."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qtrace.engine.events import Bound
from qtrace.engine.pair import spec_of
from qtrace.errors import OutputError
from qtrace.numerics import NoValues, describe, plain
from qtrace.report.records import TensorSpec
from qtrace.traces.excerpt import sketch
from qtrace.traces.literals import encode
from qtrace.traces.manifest import Manifest, StoredLeaf, StoredTensor, StoredValue
from qtrace.traces.manifest_file import DIGEST, MANIFEST, digest_line, dump
from qtrace.traces.shards import DTYPES, ShardWriter, bytes_of, digest_of
from qtrace.tree import is_object, leaves

_PART = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(DIGEST)}|tensors-\d+\.safetensors")
_PARTIAL, _REPLACED = "partial", "replaced"
# The errors of systems that cannot sync a folder, or not for every user.
_NOT_SYNCED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)


class Target:
    """The requested folder. `partial` is the folder to write in, `made` puts it in place, `dropped` removes it.

    Raises `OutputError` as `check_target` does; later errors of the disk are `OSError`s.
    """

    def __init__(self, folder: Path, *, replaces: bool) -> None:
        check_target(folder, replaces=replaces)
        # The folder behind a link is replaced, and the link stays.
        self._folder = folder.resolve() if folder.is_symlink() else folder
        self._replaces = replaces
        self.partial = self._beside(_PARTIAL)

    def made(self) -> None:
        """Make the contents of `partial` visible under the requested name."""
        sync(self.partial)
        if self._replaces and self._folder.exists():
            aside = self._beside(_REPLACED)
            os.rename(self._folder, aside)
            try:
                os.rename(self.partial, self._folder)
            except OSError:
                os.rename(aside, self._folder)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(self.partial, self._folder)
        sync(self._folder.parent)

    def dropped(self) -> None:
        """Remove what was not put in place."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _beside(self, what: str) -> Path:
        return self._folder.with_name(f"{_prefix(self._folder, what)}{secrets.token_hex(4)}")


def check_target(folder: Path, *, replaces: bool = False) -> None:
    """Check, before anything runs, that a trace can be written to `folder`.

    Raises `OutputError` where the path exists already (with `replaces`: if it is no trace, or holds more than a trace),
    or where the parent folder does not exist or cannot be written to.
    """
    if not folder.parent.is_dir():
        raise OutputError(f"trace {folder}: the folder {folder.parent} does not exist; create it first")
    if not folder.name:
        raise OutputError(f"trace {folder}: name a folder that is to be made")
    # A dangling link counts as existing.
    if os.path.lexists(folder) and not (replaces and _is_trace(folder)):
        what = (
            "and is no trace, or not only one; choose another place"
            if replaces
            else "already; --force replaces a trace"
        )
        raise OutputError(f"trace {folder}: something is there {what}")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise OutputError(f"trace {folder}: the folder {folder.parent} cannot be written to; choose another place")


def leftovers(folder: Path) -> list[Path]:
    """Return the partial folders beside it, which killed captures to this place left or a running one writes."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.parent.iterdir()):
            if any(path.name.startswith(_prefix(folder, what)) for what in (_PARTIAL, _REPLACED)):
                found.append(path)
    return found


def sync(folder: Path) -> None:
    """Make a folder's entries survive a power failure; does nothing where the system cannot sync folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise


def _prefix(folder: Path, what: str) -> str:
    return f".{folder.name}.{what}-"


def _is_trace(folder: Path) -> bool:
    """Return whether a folder holds a trace, whole or damaged, and no other files."""
    if not folder.is_dir():
        return False
    names = os.listdir(folder)
    return MANIFEST in names and all(map(_PART.fullmatch, names))


CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The form in which values are stored.

    Without `arguments` only the outputs of modules are stored; under `sketches` a few elements and the statistics of
    each tensor. Wider floats are cast to `cast`, "float16" or "bfloat16". `max_bytes` limits the size of all files
    together.
    """

    arguments: bool = True
    sketches: bool = False
    cast: str | None = None
    max_bytes: int | None = None


class TraceWriter:
    """Writes one trace to `folder`; a context manager that leaves nothing behind unless `commit` was called.

    Raises `OutputError`, here and in every method, where the disk refuses a write, or `form.max_bytes` is reached.
    """

    def __init__(self, folder: str | Path, form: Form, *, replaces: bool = False) -> None:
        self.form = form
        self.bytes = 0
        self._folder = Path(folder)
        self._target = Target(self._folder, replaces=replaces)
        self._tensors: list[StoredTensor] = []
        self._numbers: dict[tuple[str, TensorSpec | None], int] = {}
        self._placed: dict[str, tuple[int, int]] = {}
        # By identity and version, since most arguments are outputs that are stored already.
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, int]] = {}
        self._objects: dict[int, tuple[Callable[[], Any], int]] = {}
        self._object_count = 0

    def __enter__(self) -> TraceWriter:
        with self._written():
            self._target.partial.mkdir()
        self._shards = ShardWriter(self._target.partial)
        return self

    def __exit__(self, *error: object) -> None:
        self._target.dropped()

    @property
    def count(self) -> int:
        """Return how many tensors are stored."""
        return len(self._placed)

    def forget(self) -> None:
        """Release the model's objects when another sample begins."""
        self._objects.clear()
        self._known.clear()

    def arguments(self, bound: Bound, where: str) -> dict[str, StoredValue]:
        """Store the arguments of a call and return them by name; none where the form stores no arguments."""
        if not self.form.arguments:
            return {}
        return {name: self.value(value, where) for name, value in bound.values.items()}

    def value(self, value: Any, where: str) -> StoredValue:
        """Store a nested value; `where` names in an error the place that the capture has reached."""
        number = self._object(value) if is_object(value) else None
        found = [
            StoredLeaf(path=path, tensor=self.tensor(leaf, where))
            if isinstance(leaf, torch.Tensor)
            else StoredLeaf(path=path, plain=encode(leaf))
            for path, leaf in leaves(value)
        ]
        return StoredValue(leaves=tuple(found), object=number)

    def tensor(self, tensor: torch.Tensor, where: str) -> int:
        """Store a tensor unless it is stored already, and return its number."""
        version = None if tensor.is_inference() else tensor._version
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == version:
            return known[2]
        number = self._stored(tensor, where)
        if version is not None:
            self._known[id(tensor)] = (weakref.ref(tensor), version, number)
        return number

    def commit(self, manifest: Manifest) -> None:
        """Add the tensors to the manifest, write it, and make the trace visible under its name."""
        with self._written():
            shards = self._shards.close()
            text = dump(dataclasses.replace(manifest, tensors=tuple(self._tensors), shards=shards))
            self._count(len(text), "the manifest")
            _write(self._target.partial / MANIFEST, text)
            _write(self._target.partial / DIGEST, digest_line(text).encode())
            self._target.made()

    def _object(self, value: Any) -> int:
        """Return the number of an object, constant while it lives; it may hold many tensors, and is not kept."""
        known = self._objects.get(id(value))
        if known is not None and known[0]() is value:
            return known[1]
        try:
            reference: Callable[[], Any] = weakref.ref(value)
        except TypeError:

            def reference() -> Any:
                return value

        number = self._object_count
        self._objects[id(value)], self._object_count = (reference, number), number + 1
        return number

    def _stored(self, tensor: torch.Tensor, where: str) -> int:
        spec = spec_of(tensor)
        assert spec is not None
        try:
            values = self._in_form(tensor)
        except NoValues:
            return self._numbered(("", spec), StoredTensor(spec=spec))
        dtype, shape, data = DTYPES[values.dtype], tuple(values.shape), bytes_of(values)
        digest = digest_of(dtype, shape, data)
        number = self._numbers.get((digest, spec))
        if number is not None:
            return number
        if digest not in self._placed:
            self._count(len(data), where)
            with self._written():
                self._placed[digest] = self._shards.add(digest, dtype, shape, data)
        shard, offset = self._placed[digest]
        made = StoredTensor(
            spec=spec, dtype=dtype, shape=shape, digest=digest, shard=shard, offset=offset, bytes=len(data)
        )
        if self.form.sketches:
            told = describe(tensor)
            spec = dataclasses.replace(spec, min=told.min, max=told.max)
            made = dataclasses.replace(
                made, spec=spec, mean=told.mean, stddev=told.stddev, non_finite=told.non_finite or None
            )
        return self._numbered((digest, spec_of(tensor)), made)

    def _numbered(self, key: tuple[str, TensorSpec | None], made: StoredTensor) -> int:
        number = self._numbers.setdefault(key, len(self._tensors))
        if number == len(self._tensors):
            self._tensors.append(made)
        return number

    def _in_form(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.form.sketches:
            values = sketch(tensor)
        else:
            is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
            # Eight bits are stored as they are; `plain` would widen them.
            raw = is_plain and not tensor.is_meta and tensor.dtype.itemsize == 1 and tensor.dtype in DTYPES
            values = tensor.detach() if raw else plain(tensor)
        if self.form.cast is not None and values.is_floating_point():
            values = _cast(values, CASTS[self.form.cast])
        return values if values.dtype in DTYPES else values.to(torch.float64)

    def _count(self, size: int, where: str) -> None:
        most = self.form.max_bytes
        if most is not None and self.bytes + size > most:
            raise OutputError(
                f"trace {self._folder}: more than {most:,} bytes are needed, reached at {where}; nothing was kept: "
                "raise --max-bytes, or store less with --only, --outputs-only, --as bfloat16 or --stats-only"
            )
        self.bytes += size

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turn an error of the disk into an `OutputError`."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise OutputError(
                f"trace {self._folder}: {reason} after {self.bytes:,} bytes; nothing was kept, choose another place"
            ) from error


def _cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return wider floats as `dtype`, or unchanged where the cast would change their meaning.

    This is the case where an element, such as a mask's fill, would become infinite, and where all elements are so near
    0 that `dtype` represents even the largest with fewer digits than usual.
    """
    if values.dtype.itemsize <= dtype.itemsize:
        return values
    cast = values.to(dtype)
    finite = torch.isfinite(cast)
    largest = torch.where(finite, values, 0).abs().amax() if values.numel() else values.new_zeros(())
    is_tiny = bool((largest > 0) & (largest < torch.finfo(dtype).smallest_normal))
    return cast if not is_tiny and torch.equal(finite, torch.isfinite(values)) else values


def _write(path: Path, text: bytes) -> None:
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
