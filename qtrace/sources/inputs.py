"""What both models are run on: from a callable, a file of tensors, or texts and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qtrace.engine.samples import Sample, as_samples
from qtrace.errors import SourceError, UsageError
from qtrace.files import find_path, missing
from qtrace.sources.callables import call as call_user
from qtrace.sources.callables import find_object
from qtrace.sources.spec import LoadOptions, parse_spec
from qtrace.sources.traces import open_trace
from qtrace.traces.inputs import samples_of

if TYPE_CHECKING:
    from qtrace.config import InputsSource


def load_inputs(
    section: InputsSource,
    reference: nn.Module,
    reference_source: str,
    options: LoadOptions,
    call: str = "forward",
) -> list[Sample]:
    """Return the samples that a config's `inputs` stands for.

    Raises:
        UsageError: a form that is not known, `args` that do not fit, a value that is no sample.
        SourceError: the file or callable could not be had, or is damaged.
    """
    if section.source is None:
        from qtrace.sources.processor import process

        return process(section.text, section.image, reference, reference_source, options, call)
    source = section.source
    reader = _READERS.get(Path(source).suffix)
    if reader is not None:
        value = _read(source, reader, options)
    elif source.startswith("trace:"):
        return samples_of(open_trace(parse_spec(source, ("trace",)), options))
    elif ":" in source:
        parse_spec(source, ())
        found = find_object(source, options.folder)
        value = call_user(found, source, section.args, {"model": reference}) if callable(found) else found
    else:
        raise UsageError(
            f"inputs {source}: expected file.py:name, package.module:name, trace:FOLDER, "
            f"or a file that ends in {', '.join(_READERS)}"
        )
    try:
        return as_samples(value)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _read(source: str, reader: Callable[[Path], Any], options: LoadOptions) -> Any:
    path = find_path(source, options.folder)
    if path is None:
        raise SourceError(missing("inputs file", source, options.folder))
    try:
        return reader(path)
    except Exception as error:  # each format's library raises its own types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"{source}: cannot be read as {path.suffix} ({reason})") from error


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_npz(path: Path) -> Any:
    import numpy

    with numpy.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_pt(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pt": _read_pt,
}
