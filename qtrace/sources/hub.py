"""Models from transformers: `hf:` loads a model with its weights, `config:` makes one with random weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qtrace.documents import find_path, missing
from qtrace.engine.placement import floating_dtype, place_model
from qtrace.errors import SourceError, UsageError, did_you_mean
from qtrace.sources.spec import LoadOptions, Spec, check_options

_MADE = (".cache/qtrace/smollm2", ".cache/qtrace/minilm")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_pretrained(spec: Spec, options: LoadOptions) -> nn.Module:
    """Return the model of `hf:ID_OR_FOLDER[?class=…&revision=…&gguf_file=…&dtype=…]`, in eval mode.

    The class is `class`, else the class that the config names, else AutoModel. The dtype is that of the spec, else of
    the options, else the checkpoint's own.

    Raises:
        UsageError: an unknown option, class or dtype.
        SourceError: no such folder or model, or transformers could not load it.
    """
    check_options(spec, ("class", "revision", "gguf_file", "dtype"))
    place = resolve(spec, options)
    wanted = spec.options.get("dtype") or options.dtype
    dtype = floating_dtype(wanted, spec.text) if wanted else "auto"
    access = access_arguments(spec, options)
    with _loading(spec):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(place, **access)
        loader = _model_class(spec, config, options)
        model = loader.from_pretrained(place, dtype=dtype, **access)
    return place_model(_as_module(spec, model), options.device, None).eval()


def make_random(spec: Spec, options: LoadOptions) -> nn.Module:
    """Return the model of `config:FOLDER_OR_JSON[?seed=0&class=…]`: random weights, in eval mode.

    Equal seeds give equal weights; torch's own generator does not change.

    Raises:
        UsageError: an unknown option or class, a seed that is no whole number.
        SourceError: no such folder or file, or no config that transformers knows.
    """
    check_options(spec, ("class", "seed"))
    path = find_path(spec.body, options.folder)
    if path is None:
        raise SourceError(missing("transformers config", spec.body, options.folder))
    try:
        seed = int(spec.options.get("seed", "0"))
    except ValueError:
        raise UsageError(f"{spec.text}: seed must be a whole number, and is {spec.options['seed']}") from None
    with _loading(spec), torch.random.fork_rng(devices=[]):
        from transformers import AutoConfig

        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=options.trust_remote_code)
        maker = _model_class(spec, config, options)
        arguments = {"trust_remote_code": True} if options.trust_remote_code else {}
        model = maker.from_config(config, **arguments) if hasattr(maker, "from_config") else maker(config)
    return place_model(_as_module(spec, model), options.device, options.dtype).eval()


def resolve(spec: Spec, options: LoadOptions) -> str:
    """Return the folder, or the hub's id, that an `hf:` spec names.

    Raises:
        SourceError: the text looks like a folder, and there is no such folder.
    """
    path = find_path(spec.body, options.folder)
    if path is not None and path.is_dir():
        return str(path)
    if path is not None:
        raise SourceError(f"{spec.text}: {spec.body} is a file; hf: takes a folder, or a model's id on the hub")
    if _HUB_ID.fullmatch(spec.body):
        return spec.body
    if spec.body.rstrip("/").endswith(_MADE):
        raise SourceError(f"no such model folder: {spec.body}; `make models` puts it there")
    raise SourceError(missing("model folder", spec.body, options.folder))


def access_arguments(spec: Spec, options: LoadOptions) -> dict[str, Any]:
    """Return the arguments of transformers' `from_pretrained` about access to a model."""
    given = {
        "revision": spec.options.get("revision") or options.revision,
        "gguf_file": spec.options.get("gguf_file"),
        "cache_dir": options.cache_dir,
        "token": options.token,
    }
    return {"trust_remote_code": options.trust_remote_code, **{k: v for k, v in given.items() if v}}


def first_sentence(error: BaseException) -> str:
    """Return the first line of an error's text, shortened; transformers' errors can have several paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    return text if len(text) <= 240 else f"{text[:239]}…"


@contextmanager
def _loading(spec: Spec) -> Iterator[None]:
    """Hide transformers' progress bar for weights, and turn any exception of transformers into one sentence."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (UsageError, SourceError):
        raise
    except Exception as error:  # OSError, ValueError, ImportError, exceptions of remote code
        raise SourceError(f"{spec.text}: transformers cannot load it ({first_sentence(error)})") from error
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _model_class(spec: Spec, config: Any, options: LoadOptions) -> Any:
    import transformers

    wanted = spec.options.get("class")
    if wanted is not None:
        if not hasattr(transformers, wanted):
            raise UsageError(
                f"{spec.text}: transformers has no class {wanted}; {did_you_mean(wanted, dir(transformers))}"
            )
        return getattr(transformers, wanted)
    if options.trust_remote_code and getattr(config, "auto_map", None):
        automatic = [name for name in config.auto_map if name.startswith("AutoModel")]
        if automatic:
            return getattr(transformers, automatic[0])
    named = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, named, None) or transformers.AutoModel


def _as_module(spec: Spec, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SourceError(f"{spec.text}: {type(model).__name__} is no torch.nn.Module; give another class")
    return model
