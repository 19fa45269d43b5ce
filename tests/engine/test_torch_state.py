"""Each side's torch state is its own: nothing that one forward switches on reaches the other."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import qtrace
from tests.helpers.models import twin


class PassFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class PassDispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


@contextlib.contextmanager
def set_variable() -> Any:
    token = variable.set("inside")
    yield
    variable.reset(token)


@contextlib.contextmanager
def default_dtype() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


READERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "autocast": (
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.is_autocast_enabled("cpu"),
    ),
    "autocast dtype": (
        lambda: torch.autocast("cpu", dtype=torch.float16),
        lambda: torch.is_autocast_enabled("cpu") and str(torch.get_autocast_dtype("cpu")),
    ),
    "grad": (torch.enable_grad, torch.is_grad_enabled),
    "inference": (torch.inference_mode, torch.is_inference_mode_enabled),
    "functions": (PassFunctions, torch._C._len_torch_function_stack),
    "dispatch": (PassDispatch, torch._C._len_torch_dispatch_stack),
    "device": (lambda: torch.device("cpu"), torch._C._len_torch_function_stack),
    "sdpa": (lambda: sdpa_kernel(SDPBackend.MATH), torch._C._get_flash_sdp_enabled),
    "default dtype": (default_dtype, torch.get_default_dtype),
    "context variable": (set_variable, variable.get),
}


class Scoped(nn.Module):
    """Reads a piece of state before, within (around a call) and after a context that it opens."""

    def __init__(self, context: Callable[[], Any], read: Callable[[], Any], opens: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Identity(), nn.Identity(), nn.Identity()
        self.context = context if opens else contextlib.nullcontext
        self.read = read
        self.seen: list[Any] = []
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        self.seen.append(self.read())
        with self.context():
            self.seen.append(self.read())
            x = self.b(x)
            self.seen.append(self.read())
            x = self.b(x)
            self.seen.append(self.read())
        x = self.c(x)
        self.seen.append(self.read())
        return x


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("which", ["reference", "candidate", "both"])
def test_state_stays_on_its_side(name: str, which: str) -> None:
    context, read = READERS[name]
    outside = read()
    alone: dict[bool, list[Any]] = {}
    for opens in (False, True):
        model = Scoped(context, read, opens)
        with torch.no_grad():
            model(torch.randn(2))
        alone[opens] = model.seen
    models = [Scoped(context, read, which in (side, "both")) for side in ("reference", "candidate")]
    qtrace.trace(models[0], models[1], torch.randn(2))
    for model in models:
        assert model.seen == alone[model.context is context]
    assert alone[True] != alone[False]
    assert read() == outside


def test_a_side_that_raises_inside_its_context_leaves_no_state() -> None:
    class Raises(Scoped):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), PassDispatch():  # type: ignore[no-untyped-call]
                self.a(x)
                raise ValueError("inside")

    read = torch.is_inference_mode_enabled
    models = Scoped(torch.inference_mode, read, True), Raises(torch.inference_mode, read, True)
    grad = torch.is_grad_enabled()
    with pytest.raises(qtrace.ForwardError):
        qtrace.trace(*models, torch.randn(2))
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.is_grad_enabled() == grad


def test_each_side_draws_the_random_numbers_it_would_draw_alone() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5)).train()
    candidate = twin(model).train()
    x = torch.randn(4, 8)
    torch.manual_seed(3)
    expected = model(x)
    outputs: list[torch.Tensor] = []
    for side in (model, candidate):
        side.register_forward_hook(lambda _m, _a, out: outputs.append(out.clone()))
    torch.manual_seed(3)
    qtrace.trace(model, candidate, x)
    assert all(torch.equal(out, expected) for out in outputs)
    assert len(outputs) == 2


def test_random_numbers_drawn_in_eval_mode_are_noticed_and_kept_apart() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = nn.functional.dropout(self.first(x), 0.5, training=True)
            out: torch.Tensor = self.second(hidden)
            return out

    model = Noisy()
    report = qtrace.trace(model, twin(model), torch.randn(4, 8))
    assert [row.peir for row in report.rows] == [0.0, 0.0, 0.0]
    assert report.coverage.reference_calls == report.coverage.compared == 2
    assert any("random numbers are drawn although both models are in eval mode" in w for w in report.warnings)


def test_random_numbers_drawn_before_the_first_module_are_the_same_on_both_sides() -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x)
            return out

        def sample(self, x: torch.Tensor) -> torch.Tensor:
            import random

            out: torch.Tensor = self(x + torch.randn(4, 8)) * random.random()
            return out

    model = Sampler()
    report = qtrace.trace(model, twin(model), torch.randn(4, 8), call="sample")
    assert [row.peir for row in report.rows] == [0.0] * 3
