"""Shared helpers of the toolkits' wrappers: import a toolkit, name a missing package, calibrate with samples."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import nn

from qtrace.engine.samples import Sample
from qtrace.errors import SourceError, UsageError, did_you_mean


@contextlib.contextmanager
def toolkit(wrapper: str, module: str, package: str | None = None) -> Iterator[None]:
    """Import and use a toolkit inside; its prints go to stderr, since stdout is for results.

    Args:
        wrapper: the wrapper's name.
        module: the module to import.
        package: its name for `pip install`, if that is another one.

    Raises:
        SourceError: the toolkit is not installed, or cannot be imported as it is.
    """
    package = package or module
    if not _is_installed(module):
        raise SourceError(f"the wrapper {wrapper} needs the package {package}, which is missing: pip install {package}")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise SourceError(f"the installed {package} cannot be used by the wrapper {wrapper}: {reason}") from error


def calibrate(model: nn.Module, samples: Sequence[Sample]) -> None:
    """Run the model on each sample once, without gradients; on copies, as a forward may write into its arguments."""
    with torch.no_grad():
        for sample in copy.deepcopy(list(samples)):
            model(*sample.args, **sample.kwargs)


def chosen(wrapper: str, what: str, value: str, known: Sequence[str]) -> str:
    """Return `value` where it is one of `known`.

    Raises:
        UsageError: it is not; the message lists similar ones.
    """
    if value not in known:
        raise UsageError(f"the wrapper {wrapper} has no {what} {value}; {did_you_mean(str(value), known)}")
    return value


def first_sample(wrapper: str, samples: Sequence[Sample]) -> Sample:
    """Return a copy of the first sample, for a toolkit that follows the model's run.

    Raises:
        UsageError: there is none.
    """
    if not samples:
        raise UsageError(f"the wrapper {wrapper} follows the model on a sample, and there is none; give inputs")
    return copy.deepcopy(samples[0])


def linear_layers(model: nn.Module, keep: Sequence[str]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return (parent, name, layer) of each linear layer whose own name is not in `keep`, such as the head."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and name not in keep
    ]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # The package around it is missing, too.
        return False
