"""Reads the tensors that another runtime has written, by name and without unpickling, and makes a trace of them."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qtrace
from qtrace.errors import SourceError, UsageError, first_line
from qtrace.report.records import Side
from qtrace.traces.manifest import Manifest, StoredCall, StoredLeaf, StoredSample, StoredValue
from qtrace.traces.manifest_file import MANIFEST
from qtrace.traces.mapping import Match, Place, matched, places_of
from qtrace.traces.reader import Trace
from qtrace.traces.writer import Form, TraceWriter
from qtrace.tree import tensors

Tensors = dict[str, Callable[[], torch.Tensor]]
# The name of a file's only tensor where the file stores no name.
_ALONE = ""


def foreign_tensors(place: Path) -> Tensors:
    """Return, by the name of each tensor, the function that reads it, in the order of the file.

    In a folder, a tensor's name is the path of its file without the ending. If the file holds several tensors, the name
    inside the file follows.

    Raises:
        SourceError: there is no such file or folder, or it cannot be read; the returned functions may raise it too.
        UsageError: the file or folder has another format, or holds no tensors.
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
        # Such a folder may hold other JSON files beside the tensors.
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
    """Turn any exception that a library raises for a damaged file into a `SourceError` that names the file."""
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
    """Read a file of `torch.save` as far as this needs no code: a tensor, or tensors in nested containers."""
    held = tensors(torch.load(place, map_location="cpu", weights_only=True))
    return {name: tensor.detach for name, tensor in held}


def _polygraphy(place: Path) -> Tensors:
    """Read a file of `polygraphy run --save-outputs`: one iteration of one runner."""
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


_RECOGNISED = (
    "outputs of the candidate that were recognised by their values when they were imported: {}; none of them can be "
    "far off, so what is wrong shows as missing"
)
# How many tensors a message names where no tensor can be used.
_FEW = 3


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import: the matches, and the reference's outputs and the tensors without a match."""

    matches: tuple[Match, ...]
    alone: tuple[Place, ...]
    unused: tuple[str, ...]


def import_trace(
    place: Path,
    reference: Trace,
    folder: Path,
    *,
    given: Mapping[str, str] | None = None,
    by_value: bool = True,
    replaces: bool = False,
) -> Imported:
    """Write a trace to `folder` with the modules and calls of the reference and the tensors of `place` as outputs.

    Calls without any matched output are left out, so that a comparison counts and names them. The trace has no
    arguments, and its inputs are assumed to be the reference's.

    Raises:
        SourceError: the tensors cannot be read.
        UsageError: a name in `given` does not exist, the reference has more than one sample, or nothing was matched.
        OutputError: the trace cannot be written.
    """
    if len(reference.manifest.samples) != 1:
        raise UsageError(
            f"{reference.name} holds {len(reference.manifest.samples)} samples; import beside a trace of one sample"
        )
    tensors = foreign_tensors(place)
    matches = matched(reference, tensors, given or {}, by_value=by_value)
    if not matches:
        few = ", ".join([*list(tensors)[:_FEW], *["…"] * (len(tensors) > _FEW)])
        raise UsageError(
            f"{place}: none of its {len(tensors)} tensors ({few}) stands for an output of {reference.name}, "
            "by name or value; say which is which with --map"
        )
    with TraceWriter(folder, Form(arguments=False), replaces=replaces) as writer:
        outputs: dict[tuple[str, int], list[StoredLeaf]] = {}
        for match in matches:
            number = writer.tensor(tensors[match.name](), match.name)
            leaf = StoredLeaf(path=match.place.output, tensor=number)
            outputs.setdefault((match.place.module, match.place.call), []).append(leaf)
        by_nearness = sum(match.rule == "value" for match in matches)
        writer.commit(_manifest(place, reference, outputs, by_nearness))
    taken = {match.place for match in matches}
    used = {match.name for match in matches}
    return Imported(
        tuple(matches),
        tuple(one for one in places_of(reference) if one not in taken),
        tuple(name for name in tensors if name not in used),
    )


def _manifest(
    place: Path, reference: Trace, outputs: Mapping[tuple[str, int], list[StoredLeaf]], by_nearness: int
) -> Manifest:
    calls: list[StoredCall] = []
    # The numbers of calls change where calls are left out; a left-out call stands here with the number of the call
    # around it.
    numbers: dict[int, int | None] = {}
    for number, call in enumerate(reference.manifest.samples[0].calls):
        parent = None if call.parent is None else numbers[call.parent]
        leaves = outputs.get((call.module, call.call))
        if leaves is None:
            numbers[number] = parent
            continue
        numbers[number] = len(calls)
        bare = StoredValue(leaves=tuple(leaves))
        calls.append(
            dataclasses.replace(
                call, parent=parent, arguments={}, positional=(), passed=(), outputs=bare, site=None, error=None
            )
        )
    bare_modules = tuple(
        dataclasses.replace(module, attributes={}, functions={}, parameters={}, buffers={}, forward=None)
        for module in reference.manifest.modules
    )
    return Manifest(
        qtrace=qtrace.__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        environment={},
        model=Side(source=str(place), type="imported", parameters=0, dtypes=(), devices=(), training=False),
        call=reference.manifest.call,
        arguments=False,
        selected=reference.manifest.selected,
        modules=bare_modules,
        inputs=reference.manifest.inputs,
        samples=(StoredSample(calls=tuple(calls)),),
        warnings=(_RECOGNISED.format(by_nearness),) if by_nearness else (),
    )
