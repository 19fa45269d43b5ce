"""The inputs of both models: a callable's result, a file of tensors, or texts and images through the processor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qtrace.documents import find_path, missing
from qtrace.engine.samples import Sample, as_samples, signature_of
from qtrace.errors import SourceError, UsageError
from qtrace.sources.callables import call as call_user
from qtrace.sources.callables import find_object
from qtrace.sources.hub import access_arguments, first_sentence, resolve
from qtrace.sources.models import open_trace
from qtrace.sources.spec import LoadOptions, Spec, parse_spec
from qtrace.traces.reader import samples_of

if TYPE_CHECKING:
    from qtrace.config import InputsSource


def process(
    texts: Sequence[str],
    images: Sequence[str],
    reference: nn.Module,
    reference_source: str,
    options: LoadOptions,
    call: str = "forward",
) -> list[Sample]:
    """Return one sample for each text, image, or pair of both; a single text or image is paired with all others.

    Texts without images go through the tokenizer unchanged. With images, the processor is used, with its chat template
    if it has one. Values that the model's method does not take are left out.

    Raises:
        UsageError: the reference names no tokenizer or processor, or this one does not accept the inputs.
        SourceError: an image is missing or unreadable, or the tokenizer could not be loaded.
    """
    place, access = _whose(reference, reference_source, options)
    if not images:
        tokenizer = _load("AutoTokenizer", "tokenizer", place, access, reference_source)
        with _processing(source=reference_source, processor=tokenizer):
            made = [_tokenized(tokenizer, text) for text in texts]
    else:
        processor = _load("AutoProcessor", "processor", place, access, reference_source)
        pairs = _pairs(texts, [_open(image, options) for image in images])
        with _processing(source=reference_source, processor=processor):
            made = [_processed(processor, text, image, reference_source) for text, image in pairs]
    return [Sample(kwargs=_taken(dict(item), reference, call)) for item in made]


def _whose(reference: nn.Module, source: str, options: LoadOptions) -> tuple[str, dict[str, Any]]:
    """Return the folder or id of the model that the tokenizer belongs to, and the access arguments."""
    scheme, _, _ = source.partition(":")
    if scheme == "hf":
        spec = parse_spec(source, ("hf",))
        return resolve(spec, options), access_arguments(spec, options)
    access = access_arguments(Spec(source, "", source), options)
    if scheme == "config":
        path = find_path(parse_spec(source, ("config",)).body, options.folder)
        if path is not None:
            return str(path if path.is_dir() else path.parent), access
    name = getattr(reference, "name_or_path", "")
    if isinstance(name, str) and name:
        return name, access
    raise UsageError(
        f"--text and --image need the reference's own tokenizer or processor, and {source} "
        f"({type(reference).__name__}) names none; use an hf: reference, or give --inputs"
    )


def _load(loader: str, kind: str, place: str, access: dict[str, Any], source: str) -> Any:
    import transformers

    try:
        return getattr(transformers, loader).from_pretrained(place, **access)
    except Exception as error:  # OSError, ValueError, KeyError: depends on what is missing
        raise SourceError(
            f"{source} has no {kind} that transformers can load from {place} ({first_sentence(error)}); "
            "give --inputs instead"
        ) from error


@contextmanager
def _processing(source: str, processor: Any) -> Iterator[None]:
    """Turn an exception of a processor into one sentence."""
    try:
        yield
    except (UsageError, SourceError):
        raise
    except Exception as error:  # ValueError, TypeError, IndexError: each processor raises its own
        raise SourceError(
            f"the {type(processor).__name__} of {source} cannot process these texts and images "
            f"({first_sentence(error)}); give --inputs instead"
        ) from error


def _tokenized(tokenizer: Any, text: str) -> Any:
    made = tokenizer(text, return_tensors="pt")
    if made["input_ids"].numel() == 0:
        raise UsageError(f"the text {text!r} makes no tokens; give one that does")
    return made


def _processed(processor: Any, text: str | None, image: Any, source: str) -> Any:
    """Return the processor's result for an image, with a text if there is one."""
    if getattr(processor, "chat_template", None):
        words = [] if text is None else [{"type": "text", "text": text}]
        message = {"role": "user", "content": [{"type": "image", "image": image}, *words]}
        return processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    parameters = inspect.signature(processor.__call__).parameters
    if "images" not in parameters:
        raise UsageError(f"--image: {source} has a {type(processor).__name__}, which takes no images")
    if text is None:
        return processor(images=image, return_tensors="pt")
    if "text" not in parameters:
        raise UsageError(f"--text: {source} has a {type(processor).__name__}, which takes images only")
    return processor(text=text, images=image, return_tensors="pt")


def _pairs(texts: Sequence[str], images: Sequence[Any]) -> list[tuple[str | None, Any]]:
    words: Sequence[str | None] = texts or [None]
    count = max(len(words), len(images))
    if not {len(words), len(images)} <= {1, count}:
        raise UsageError(
            f"{len(texts)} texts and {len(images)} images make no pairs; give equally many, or one of either"
        )
    return [(words[i % len(words)], images[i % len(images)]) for i in range(count)]


def _open(name: str, options: LoadOptions) -> Any:
    path = find_path(name, options.folder)
    if path is None:
        raise SourceError(missing("image", name, options.folder))
    try:
        from PIL import Image
    except ImportError as error:
        raise SourceError("--image needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise SourceError(f"{name}: no image that Pillow can read") from error


def _taken(made: dict[str, Any], reference: nn.Module, call: str) -> dict[str, Any]:
    signature = signature_of(reference, call)
    if signature is None:
        return made
    parameters = signature.parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return made
    return {name: value for name, value in made.items() if name in parameters}


def load_inputs(
    section: InputsSource,
    reference: nn.Module,
    reference_source: str,
    options: LoadOptions,
    call: str = "forward",
) -> list[Sample]:
    """Return the samples that a config's `inputs` describes.

    Raises:
        UsageError: an unknown form, `args` that do not fit, a value that is no sample.
        SourceError: the file or callable could not be loaded, or is damaged.
    """
    if section.source is None:
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
