"""What a run sets around both models, and puts back after it."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence

import torch

from qtrace.engine.model import Model, devices_of
from qtrace.engine.torch_state import RandomState
from qtrace.tracing.memory import keep_freed_memory


@contextlib.contextmanager
def set_apart(models: Sequence[Model]) -> Iterator[None]:
    """Run without gradients, compiled models eagerly, and leave the caller's random state as it was."""
    random = RandomState(devices_of(models))
    keep_freed_memory()
    # Hooks and rows are many small objects: enough to make the collector walk the whole program again, which takes
    # longer than they did. What lives already is left out of that for the time being.
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if any(model.is_compiled() for model in models) or "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            random.restore()
            if freezes:
                gc.unfreeze()
