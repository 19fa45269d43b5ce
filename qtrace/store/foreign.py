"""Tensors that another runtime has written, by name: .npz and .safetensors files, folders of .npy files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qtrace.errors import SourceError, UsageError, first_line

ENDINGS = (".npz", ".safetensors")


def foreign_tensors(place: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Return how to read each tensor, by its name, in the order of the file; nothing is unpickled.

    In a folder, a tensor's name is the path of its .npy file without the ending.

    Raises:
        SourceError: there is no such file or folder, or it cannot be read; reading one tensor may raise it too.
        UsageError: it is of another format.
    """
    if not place.exists():
        raise SourceError(f"no such file or folder to import: {place}")
    if place.is_dir():
        files = sorted(place.rglob("*.npy"))
        if not files:
            raise UsageError(f"{place}: there is no .npy file in this folder; expected some, or {' or '.join(ENDINGS)}")
        return {file.relative_to(place).with_suffix("").as_posix(): _of(file, _npy) for file in files}
    if place.suffix == ".npz":
        with _readable(place), np.load(place, allow_pickle=False) as arrays:
            names = list(arrays.files)
        return {name: _of(place, _npz, name) for name in names}
    if place.suffix == ".safetensors":
        from safetensors import safe_open

        with _readable(place), safe_open(place, "pt") as file:
            stored = list(file.keys())
        return {name: _of(place, _safetensors, name) for name in stored}
    raise UsageError(f"{place}: expected {', '.join(ENDINGS)} or a folder of .npy files")


class _readable:
    """Turns whatever a library raises for a damaged file into a `SourceError` that names it."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            reason = first_line(error) or type(error).__name__
            raise SourceError(f"{self._place}: cannot be read as {self._place.suffix} ({reason})") from error


def _of(place: Path, reader: Callable[..., torch.Tensor], *name: str) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        with _readable(place):
            return reader(place, *name)
        raise AssertionError("not reached")

    return read


def _npy(place: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(place, allow_pickle=False))


def _npz(place: Path, name: str) -> torch.Tensor:
    with np.load(place, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[name])


def _safetensors(place: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(place, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
