"""Texts and images through the reference's own tokenizer or processor: one sample for each text or image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from qtrace.engine.samples import Sample, signature_of
from qtrace.errors import SourceError, UsageError
from qtrace.files import find_path, missing
from qtrace.sources.hub import access_arguments, first_sentence, resolve
from qtrace.sources.spec import LoadOptions, Spec, parse_spec


def process(
    texts: Sequence[str],
    images: Sequence[str],
    reference: nn.Module,
    reference_source: str,
    options: LoadOptions,
    call: str = "forward",
) -> list[Sample]:
    """Return one sample per text, per image, or per pair of both; a single one of a kind goes with all.

    Only texts: through the tokenizer, as they are. With images: through the processor, by its chat template
    where it has one. What the model's method does not take is left out.

    Raises:
        UsageError: the reference names no tokenizer or processor, or it cannot take what is given.
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
    """Return the folder or id beside whose model the tokenizer lies, and how to get at it."""
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
    """Turn what a processor raises into one sentence."""
    try:
        yield
    except (UsageError, SourceError):
        raise
    except Exception as error:  # ValueError, TypeError, IndexError: each processor its own
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
    """Return what the processor makes of an image, with a text where there is one."""
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
