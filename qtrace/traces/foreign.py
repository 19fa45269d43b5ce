"""Tensors that another runtime has written, by name: one file of them, or a folder of files. Nothing is unpickled.

A reader takes a file and returns how to read each of its tensors; what it returns keeps the file open.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtrace.errors import SourceError, UsageError, first_line
from qtrace.traces.manifest_file import MANIFEST
from qtrace.tree import tensors

Tensors = dict[str, Callable[[], torch.Tensor]]
# The name of the only tensor of a file that gives it none.
_ALONE = ""


def foreign_tensors(place: Path) -> Tensors:
    """Return how to read each tensor, by its name, in the order of the file.

    In a folder, a tensor's name is the path of its file without the ending, and behind it the name that it has there
    if the file holds several.

    Raises:
        SourceError: there is no such file or folder, or it cannot be read; reading one tensor may raise it too.
        UsageError: it is of another format, or holds no tensors.
    """
    if not place.exists():
        raise SourceError(f"no such file or folder to import: {place}")
    if (place / MANIFEST).is_file():
        raise UsageError(f"{place}: this is a trace already; compare it by qtrace diff")
    if place.is_dir():
        found = _folder(place)
    elif place.suffix in _FILES:
        found = {name or place.stem: read for name, read in _file(place).items()}
    else:
        raise UsageError(f"{place}: expected {', '.join(_FILES)} or a folder of such files")
    if not found:
        raise UsageError(f"{place}: there are no tensors in it; expected {', '.join(_FILES)} or a folder of such files")
    return found


def _folder(place: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(path for path in place.rglob("*") if path.suffix in _FILES and path.is_file()):
        # JSON is what such a folder has beside the tensors, too.
        if file.suffix == ".json":
            continue
        held, own = _file(file), file.relative_to(place).with_suffix("").as_posix()
        for name, read in held.items():
            found[own if len(held) == 1 else f"{own}/{name}"] = read
    return found


def _file(place: Path) -> Tensors:
    with _readable(place):
        held = _FILES[place.suffix](place)
    return {name: _named(place, name, read) for name, read in held.items()}


@contextmanager
def _readable(place: Path, name: str = _ALONE) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a `SourceError` that names it."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        what = f"{name!r} cannot be read" if name else f"cannot be read as {place.suffix}"
        raise SourceError(f"{place}: {what} ({first_line(error) or type(error).__name__})") from error


def _named(place: Path, name: str, read: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def readable() -> torch.Tensor:
        with _readable(place, name):
            return read()
        raise AssertionError("not reached")

    return readable


def _npy(place: Path) -> Tensors:
    return {_ALONE: lambda: torch.from_numpy(np.load(place, allow_pickle=False))}


def _npz(place: Path) -> Tensors:
    arrays = np.load(place, allow_pickle=False)
    return {name: partial(_array_of, arrays, name) for name in arrays.files}


def _safetensors(place: Path) -> Tensors:
    from safetensors import safe_open

    file: Any = safe_open(place, "pt")
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118


def _pt(place: Path) -> Tensors:
    """Read what `torch.save` wrote, as far as that needs no code: a tensor, or tensors in nested containers."""
    held = tensors(torch.load(place, map_location="cpu", weights_only=True))
    return {name: tensor.detach for name, tensor in held}


def _polygraphy(place: Path) -> Tensors:
    """Read what `polygraphy run --save-outputs` wrote: of one runner, one iteration."""
    document: Any = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("polygraphy_class") != "RunResults":
        raise UsageError(f"{place}: expected the outputs that Polygraphy saves, and it holds something else")
    runs = [(runner, outputs["outputs"]) for runner, iterations in document["lst"] for outputs in iterations]
    if len(runs) != 1:
        told = ", ".join(runner for runner, _ in runs) or "none"
        raise UsageError(f"{place}: expected one iteration of one runner, and it holds {len(runs)}: {told}; save one")
    return {name: partial(_decoded, held) for name, held in runs[0][1].items()}


def _array_of(arrays: Mapping[str, Any], name: str) -> torch.Tensor:
    return torch.from_numpy(arrays[name])


def _decoded(held: Any) -> torch.Tensor:
    values = held.get("values", held)
    if values.get("polygraphy_class") != "ndarray":
        raise ValueError(f"it is a {values.get('polygraphy_class')}, which may hold a pickle; save it as a NumPy array")
    return torch.from_numpy(np.load(io.BytesIO(base64.b64decode(values["array"], validate=True)), allow_pickle=False))


_FILES: dict[str, Callable[[Path], Tensors]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".pt": _pt,
    ".json": _polygraphy,
}
