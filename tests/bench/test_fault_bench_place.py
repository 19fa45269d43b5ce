"""Where each fault of the bench is, found without qtrace: modules replayed on the reference's arguments."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from bench.faults.case import Case, Pair
from bench.faults.catalogue import cases
from qtrace.engine.samples import as_samples
from tests.helpers.fault_bench import difference, tensors

# In a quantized candidate every layer differs, and a wrapped one takes other arguments under other paths.
UNLIKE = (
    "quantized",
    "quantized_conv",
    "quantized_vit",
    "int8_bert",
    "qwen3_vl",
    "tico_llama",
    "compensated",
    "reparametrized",
    "rebuilt",
)
# Written anew, both attentions return weights that nobody uses in another form.
WRITTEN_ANEW = "torch_layers/written_out_wrongly"
CASES = [case for case in cases() if case.answers and case.architecture not in UNLIKE and case.id != WRITTEN_ANEW]
AGREES = 2e-6


def _recorded(model: nn.Module, case: Case, inputs: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (path, args, kwargs, output) of each call inside `model`, each with copies of its own."""
    calls: list[tuple[str, Any, Any, Any]] = []
    open_calls: list[tuple[Any, Any]] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        open_calls.append(copy.deepcopy((args, kwargs)))

    def leave(path: str, output: Any) -> None:
        calls.append((path, *open_calls.pop(), copy.deepcopy(list(tensors(output)))))

    for path, module in model.named_modules():
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(lambda _, __, output, path=path: leave(path, output))
    (sample,) = as_samples(inputs)
    with torch.no_grad():
        # The model itself and not its forward, which would run without the root's hooks.
        (model if case.call == "forward" else getattr(model, case.call))(*sample.args, **sample.kwargs)
    yield from calls


def _differs(module: nn.Module, args: Any, kwargs: Any, wanted: list[torch.Tensor]) -> bool:
    try:
        with torch.no_grad():
            got = list(tensors(module(*args, **kwargs)))
    except (RuntimeError, IndexError):
        return True
    return len(got) != len(wanted) or difference(wanted, got) > AGREES


def _culprits(pair: Pair, case: Case) -> set[str]:
    """Return the paths whose module differs on clean arguments though none inside it does."""
    differing = {
        path
        for path, args, kwargs, output in _recorded(pair.reference, case, pair.inputs)
        if _differs(pair.at(path), args, kwargs, output)
    }
    return {
        path
        for path in differing
        if not any(other != path and (not path or other.startswith(f"{path}.")) for other in differing)
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fault_is_where_the_answer_says(case: Case) -> None:
    found = _culprits(case.build(), case)
    assert found, "no module differs on the reference's arguments"
    if len(case.faults) == 1:
        assert found <= case.answers
    else:
        # A container with a fault of its own is not seen behind one inside it; the innermost must be answers.
        assert found <= case.answers
        hidden = [fault for fault in case.faults if not fault & found]
        assert all(any(_inside(inner, path) for inner in found for path in fault) for fault in hidden)


def _inside(inner: str, outer: str) -> bool:
    return inner != outer and (not outer or inner.startswith(f"{outer}."))
