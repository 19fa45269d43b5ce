"""Loads a run's two models and their inputs by its config, and makes sure that the reference does not change."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qtrace.config import InputsSource, ReferenceSource, RunConfig
from qtrace.engine.placement import check_device, place_sample
from qtrace.engine.samples import Sample, check_fits
from qtrace.errors import SourceError, UsageError
from qtrace.sources.inputs import load_inputs
from qtrace.sources.models import is_trace, load_model, made_from_trace
from qtrace.sources.spec import LoadOptions
from qtrace.sources.wrappers import apply_wrapper, load_wrapper


@contextlib.contextmanager
def reference_untouched(reference: nn.Module, source: str) -> Iterator[None]:
    """Refuse changes that `source` makes to the reference: the comparison would use a changed reference.

    Raises:
        SourceError: a tensor was replaced or written to, or modules or hooks were changed; one change is named.
    """
    before = _state(reference)
    yield
    after = _state(reference)
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise SourceError(
            f"{source} changed the reference itself ({changed[0] or '<root>'}{more}), so there is nothing left to "
            "compare with; give it a parameter reference, and it gets a copy"
        )


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Restore the process-wide settings that affect the models' results: default dtype and device, …

    They also include whether gradients are computed, whether operators must be deterministic, and the current folder.
    """
    folder, dtype, device = os.getcwd(), torch.get_default_dtype(), torch.get_default_device()
    grad, strict = torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(strict, warn_only=warns_only)
        os.chdir(folder)


def _state(model: nn.Module) -> dict[str, object]:
    """Return, by path, the values that change when a tensor or module is replaced, written to or hooked."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        found[path] = (id(module), type(module), hooks, id(vars(module).get("forward")))
        # A model may compute unsaved buffers, such as rotary frequencies, anew in each run.
        saved = {
            name: value for name, value in module._buffers.items() if name not in module._non_persistent_buffers_set
        }
        for name, tensor in {**module._parameters, **saved}.items():
            if tensor is not None:
                version = None if tensor.is_inference() else tensor._version
                found[f"{path}.{name}" if path else name] = (id(tensor), version, _address(tensor))
    return found


def _address(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's values: `parameter.data = …` changes nothing else."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        # A subclass, or a tensor without values of its own.
        return 0


@dataclass(frozen=True)
class Pair:
    """Two models and their inputs; the `_source` texts name the origin of each."""

    reference: nn.Module
    candidate: nn.Module
    samples: list[Sample]
    reference_source: str
    candidate_source: str
    inputs_source: str


@dataclass(frozen=True)
class Loaded:
    """One model and its inputs; `source` names its origin."""

    model: nn.Module
    samples: list[Sample]
    source: str


def load_reference(config: RunConfig) -> Loaded:
    """Load only the reference and the inputs, in the way of `load_pair`; raises the same errors."""
    reference_section, inputs_section = _reference_section(config), _inputs_section(config)
    options = _load_options(config)
    check_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with redirect_stdout(sys.stderr):
        _seed(config.seed)
        source = reference_section.source
        reference = load_model(source, args=reference_section.args, options=options)
        _seed(config.seed)
        # Two traces need no inputs, since they hold all results.
        is_stored = len(_stored(config)) == 2
        loaded = [Sample()] if is_stored else load_inputs(inputs_section, reference, source, options, config.call)
        samples = [place_sample(sample, config.device, config.dtype) for sample in loaded]
        for sample in samples:
            check_fits(reference, sample, config.call)
    return Loaded(reference, samples, _described(source, reference_section.args))


def load_pair(config: RunConfig) -> Pair:
    """Load the reference, the inputs and the candidate, in this order.

    The random generators of Python and torch are seeded with `config.seed` before each of the three, so that two
    callables which draw random weights in the same order get the same weights. Device and dtype apply to both models
    and (the dtype only for floating-point tensors) to the inputs; a wrapper receives the reference after this. Output
    that is printed while loading goes to stderr; process-wide changes by a candidate's maker are undone.

    Raises:
        UsageError: a part is missing, options do not fit, or the inputs do not fit the reference's method.
        SourceError: a part could not be loaded, or the candidate's maker changed the reference or returned it.
    """
    # Missing parts are reported before the reference is loaded, which may take minutes.
    reference_section, candidate_section = _reference_section(config), config.candidate
    if candidate_section is None:
        raise UsageError("there is no candidate; give --candidate SPEC or --wrap NAME, or a config with a candidate")
    inputs_section = _inputs_section(config)
    wrap, args = candidate_section.wrap, candidate_section.args
    if wrap is not None:
        load_wrapper(wrap, args)
        if is_trace(reference_section.source):
            raise made_from_trace(f"the wrapper {wrap}", str(reference_section.source))
    first = load_reference(config)
    reference, samples = first.model, first.samples
    made_by = f"the wrapper {wrap}" if wrap is not None else str(candidate_section.source)
    with redirect_stdout(sys.stderr), process_kept(), reference_untouched(reference, made_by):
        _seed(config.seed)
        if wrap is not None:
            candidate = apply_wrapper(wrap, reference, samples, args)
        else:
            candidate = load_model(made_by, args=args, reference=reference, options=_load_options(config))
    if candidate is reference:
        raise SourceError(
            f"{made_by} returned the reference itself, which would be compared with itself; "
            "give it a parameter reference, and it gets a copy"
        )
    for sample in samples:
        check_fits(candidate, sample, config.call)
    texts = ", ".join([*map(repr, inputs_section.text), *inputs_section.image])
    return Pair(
        reference,
        candidate,
        samples,
        reference_source=first.source,
        candidate_source=_described(f"wrap {wrap}" if wrap else str(candidate_section.source), args),
        inputs_source=_described(inputs_section.source or texts, inputs_section.args),
    )


def _reference_section(config: RunConfig) -> ReferenceSource:
    if config.reference is None:
        raise UsageError("there is no reference; give --reference SPEC, or a config with reference.source")
    return config.reference


def _inputs_section(config: RunConfig) -> InputsSource:
    """Return the source of the inputs; by default a stored side supplies the inputs that it was captured on."""
    if config.inputs is not None:
        return config.inputs
    stored = _stored(config)
    if not stored:
        raise UsageError("there are no inputs; give --inputs SPEC or --text TEXT, or a config with inputs")
    return InputsSource(source=stored[0])


def _stored(config: RunConfig) -> list[str]:
    """Return the sources of both sides that are traces."""
    sections = [section for section in (config.reference, config.candidate) if section is not None]
    sources = [section.source for section in sections if section.source is not None]
    return [source for source in sources if is_trace(source)]


def _load_options(config: RunConfig) -> LoadOptions:
    return LoadOptions(
        folder=config.folder,
        device=config.device,
        dtype=config.dtype,
        cache_dir=config.cache_dir,
        token=config.token,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def _described(source: str, args: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key}={value!r}" for key, value in args.items())
    return f"{source}({shown})" if args else source
