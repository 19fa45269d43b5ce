"""Shards: safetensors files that are written while tensors arrive, and read back by place.

Small tensors are copied and gathered until they fill a shard. A large tensor becomes a shard of its own, straight from
the model's memory. So at most one shard is in memory, however many shards there are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from qtrace.errors import SourceError
from qtrace.traces.manifest import Shard, StoredTensor
from qtrace.traces.manifest_file import damaged

# Bytes at which gathered tensors are written, and from which a tensor is not gathered.
GATHERED = 16 << 20
LARGE = 2 << 20
DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TORCH = {name: dtype for dtype, name in DTYPES.items()}
_OPEN_FILES = 8


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the elements of a tensor on any device as they are stored: row-major, little-endian; rarely copied."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest_of(dtype: str, shape: Sequence[int], data: memoryview) -> str:
    """Return the name of a tensor: the SHA-256 of its dtype, its shape and its bytes."""
    found = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
    found.update(data)
    return found.hexdigest()


class ShardWriter:
    """Writes tensors to shards in `folder`; `shards` are complete after `close`. Raises `OSError` as writing does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[int, Shard] = {}
        self._numbers = 0
        self._gathered: list[tuple[str, str, tuple[int, ...], bytes]] = []
        self._gathered_bytes = 0
        self._gathering: int | None = None

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> tuple[int, int]:
        """Add a tensor, and return the number of its shard and its offset behind the shard's header."""
        if len(data) >= LARGE:
            number = self._next()
            self._write(number, [(name, dtype, shape, data)])
            return number, 0
        if self._gathering is None:
            self._gathering = self._next()
        number, offset = self._gathering, self._gathered_bytes
        self._gathered.append((name, dtype, shape, bytes(data)))
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHERED:
            self._flush()
        return number, offset

    def close(self) -> tuple[Shard, ...]:
        """Write the tensors that are still gathered, and return all shards by their numbers."""
        self._flush()
        return tuple(self._shards[number] for number in range(self._numbers))

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers - 1

    def _flush(self) -> None:
        if self._gathering is not None:
            self._write(self._gathering, self._gathered)
        self._gathered, self._gathered_bytes, self._gathering = [], 0, None

    def _write(self, number: int, tensors: Sequence[tuple[str, str, tuple[int, ...], bytes | memoryview]]) -> None:
        header: dict[str, object] = {}
        end = 0
        for name, dtype, shape, data in tensors:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + len(data))}
            end += len(data)
        text = json.dumps(header, separators=(",", ":")).encode()
        # The format lets a header end in spaces, so that the elements begin at a multiple of 8.
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        name = f"tensors-{number + 1:05d}.safetensors"
        with (self._folder / name).open("xb") as file:
            file.write(head)
            for _, _, _, data in tensors:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        digest = hashlib.sha256(head).hexdigest()
        self._shards[number] = Shard(file=name, bytes=len(head) + end, header=len(head), digest=digest)


class ShardReader:
    """Reads tensors, and checks all data: each file when it is opened, each tensor when it is read.

    Every error is a `SourceError` that names the file.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder = folder
        self._shards = shards
        self._files: dict[int, BinaryIO] = {}

    def check(self) -> None:
        """Check that every file exists with its original size, and that its header is the one that was written."""
        for number in range(len(self._shards)):
            self._file(number)

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """Return the elements of a stored tensor."""
        assert tensor.shard is not None
        shard, file = self._shards[tensor.shard], self._file(tensor.shard)
        # The manifest is consistent and the file has the size that it states, so these bytes exist.
        data = torch.empty(tensor.bytes, dtype=torch.uint8)
        view = data.numpy().data
        try:
            file.seek(shard.header + tensor.offset)
            got = file.readinto(view) if tensor.bytes else 0  # type: ignore[attr-defined]
        except OSError as error:
            raise SourceError(f"{file.name}: {error.strerror or type(error).__name__}; it cannot be read") from error
        if got != tensor.bytes or digest_of(tensor.dtype, tensor.shape, view) != tensor.digest:
            raise damaged(Path(file.name), f"the bytes from {shard.header + tensor.offset} on are not those written")
        return data.view(_TORCH[tensor.dtype]).reshape(tensor.shape)

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, number: int) -> BinaryIO:
        file = self._files.pop(number, None)
        if file is None:
            file = self._opened(self._shards[number])
            if len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
        # The file that was used last stands last.
        self._files[number] = file
        return file

    def _opened(self, shard: Shard) -> BinaryIO:
        path = self._folder / shard.file
        try:
            # Opening a pipe would block.
            if path.exists() and not path.is_file():
                raise damaged(path, "it is no file")
            file = path.open("rb")
        except FileNotFoundError:
            raise damaged(path, "it is missing") from None
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror or type(error).__name__}; it cannot be read") from error
        size = os.fstat(file.fileno()).st_size
        wrong = None
        if size != shard.bytes:
            wrong = f"it has {size} bytes, and {shard.bytes} were written"
        elif hashlib.sha256(file.read(shard.header)).hexdigest() != shard.digest:
            wrong = "its header is not the one that was written"
        if wrong is not None:
            file.close()
            raise damaged(path, wrong)
        return file
