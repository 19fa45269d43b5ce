"""Hooks of the model's own: those that change what goes in or comes out are the module's; those that look, look."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.engine.events import Bound, Call
from qtrace.report.records import Finding, Outcome
from tests.helpers.models import Chain, hooks_of, twin

STEP = 0.05


class Levels:
    """Rounds what a pre-hook or a hook is handed; counts what it saw."""

    def __init__(self) -> None:
        self.calls = 0

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.calls += 1
        return tuple(self.rounded(arg) for arg in args)

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.calls += 1
        return self.rounded(output)

    def in_place(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.calls += 1
        output.copy_(self.rounded(output))

    @staticmethod
    def rounded(values: Tensor) -> Tensor:
        return torch.round(values / STEP) * STEP


class Tapped(nn.Module):
    """Uses what a hook has seen of its first layer, and not what the layer returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.seen: list[Tensor] = []
        self.first.register_forward_hook(self.look)

    def look(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        out: Tensor = self.head(self.seen.pop())
        return out


def own_error(report: qtrace.Report, module: str) -> float:
    error = report.row(module).peir_local
    assert error is not None
    return error


def named(report: qtrace.Report) -> list[tuple[str, str]]:
    return [(finding.kind, finding.module) for finding in report.findings]


def inputs() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def test_what_a_modules_own_pre_hook_changes_is_the_modules_and_not_its_callers() -> None:
    reference = Chain()
    candidate = twin(reference)
    leaf = next(module for module in candidate.modules() if isinstance(module, nn.Linear))
    path = next(name for name, module in candidate.named_modules() if module is leaf)
    leaf.register_forward_pre_hook(Levels().before)
    report = qtrace.trace(reference, candidate, inputs())
    assert report.row(path).peir_in == 0
    assert own_error(report, path) > 1e-3
    assert named(report) == [("introduces", path)]


def test_what_a_modules_own_hook_changes_shows_in_what_it_returns() -> None:
    for name in ("after", "in_place"):
        reference = Chain()
        candidate = twin(reference)
        path, leaf = next((p, m) for p, m in candidate.named_modules() if isinstance(m, nn.Linear))
        leaf.register_forward_hook(getattr(Levels(), name))
        before = hooks_of(candidate)
        report = qtrace.trace(reference, candidate, inputs())
        row = report.row(path)
        assert row.peir is not None
        assert row.peir > 1e-3
        assert own_error(report, path) == row.peir
        assert named(report) == [("introduces", path)]
        assert hooks_of(candidate) == before


class Named(nn.Module):
    """Returns its output by name, or in a tuple."""

    def __init__(self, *, by_name: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.by_name = by_name

    def forward(self, x: Tensor) -> Any:
        out = self.inner(x)
        return {"out": out} if self.by_name else (out, out.sum())


class Unpacks(nn.Module):
    def __init__(self, *, by_name: bool) -> None:
        super().__init__()
        self.first, self.head = Named(by_name=by_name), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        held = self.first(x)
        out: Tensor = self.head(held["out"] if self.first.by_name else held[0])
        return out


def into_dict(module: nn.Module, args: Any, output: dict[str, Tensor]) -> None:
    output["out"] = Levels.rounded(output["out"])


def into_tensor(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
    output[0].copy_(Levels.rounded(output[0]))


@pytest.mark.parametrize(("by_name", "hook"), [(True, into_dict), (False, into_tensor)])
def test_what_a_hook_changes_inside_a_container_is_the_modules(by_name: bool, hook: Any) -> None:
    reference = Unpacks(by_name=by_name).eval()
    candidate = twin(reference)
    candidate.get_submodule("first").register_forward_hook(hook)
    assert named(qtrace.trace(reference, candidate, inputs())) == [("introduces", "first")]


def test_of_several_hooks_in_a_row_none_is_taken_for_one_that_looks() -> None:
    # What the first of them returns is gone when the last one's is made, which may get its id.
    reference = Chain()
    candidate = twin(reference)
    for _ in range(3):
        candidate.get_submodule("second").register_forward_hook(lambda module, args, output: 1.05 * output + 0.02)
    assert named(qtrace.trace(reference, candidate, inputs())) == [("introduces", "second")]


def test_a_hook_that_only_looks_sees_what_is_handed_over() -> None:
    reference = Tapped()
    candidate = copy.deepcopy(reference)
    candidate.first.register_forward_hook(candidate.look)
    # The copied hook of the reference looks for that one.
    candidate.first._forward_hooks.pop(next(iter(candidate.first._forward_hooks)))
    with torch.no_grad():
        candidate.first.weight[0] *= -1
    report = qtrace.trace(reference, candidate, inputs())
    assert own_error(report, "head") == 0
    assert own_error(report, "first") > 0.1
    first: Finding = report.findings[0]
    assert (first.module, first.confirmed) == ("first", True)
    assert first.graft is not None
    assert first.graft["after"] == 0


def test_each_module_that_rounds_by_hooks_makes_an_error_of_its_own_and_nobody_is_to_blame() -> None:
    reference = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))
    candidate = twin(reference)
    levels = Levels()
    for module in candidate.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(levels.before)
            module.register_forward_hook(levels.after)
    report = qtrace.trace(reference, candidate, inputs())
    assert levels.calls
    assert report.outcome is Outcome.DRIFT
    assert all(own_error(report, f"{place}") == 0 for place in range(4))
    assert all(own_error(report, f"{place}.0") > 1e-3 for place in range(4))


class Raising:
    """A listener that raises at one module's entry."""

    def enter(self, call: Call, module: nn.Module, arguments: Bound) -> None:
        if call.path == "1.0":
            raise AttributeError("not at this one")

    def leave(self, call: Call, module: nn.Module, value: Any) -> None:
        pass


def test_a_listener_that_raises_ends_the_run() -> None:
    reference = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
    with pytest.raises(qtrace.ForwardError, match="not at this one"):
        qtrace.trace(reference, twin(reference), inputs(), listeners=(Raising(), None))
    assert not any(hooks_of(reference).values())
