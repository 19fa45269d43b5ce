"""A model that raises, is interrupted, or swallows what it should not: the report so far, and no hook left."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.errors import ForwardError, Interrupted
from qtrace.report.records import Outcome
from tests.helpers.models import hooks_of, twin


class Deep(nn.Module):
    """Three levels; the innermost calls `act` when it runs, which may be made to do anything."""

    def __init__(self, act: Any = None) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.middle = nn.ModuleDict({"inner": Inner(act)})
        self.after = nn.Linear(4, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.after(self.middle["inner"](self.before(x)))
        return out


class Inner(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.leaf = Leaf(act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.leaf(self.layer(x))
        return out


class Leaf(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) if self.act is not None else x


def pair(act: Any, side: str) -> tuple[nn.Module, nn.Module]:
    good, bad = Deep(), Deep(act)
    bad.load_state_dict(good.state_dict())
    return (good, bad) if side == "candidate" else (bad, good)


def boom(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("scale must be positive\nsecond line")


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_an_exception_names_side_module_and_keeps_what_was_compared(side: str) -> None:
    models = pair(boom, side)
    with pytest.raises(ForwardError) as caught:
        qtrace.trace(*models, torch.randn(2, 4))
    error = caught.value
    assert (error.side, error.module) == (side, "middle.inner.leaf")
    message = str(error)
    assert message.startswith(
        f"the {side} raised ValueError in middle.inner.leaf (Leaf): scale must be positive (test_trace_errors.py:"
    )
    assert isinstance(error.__cause__, ValueError)
    report = error.report
    assert isinstance(report, qtrace.Report)
    assert [row.module for row in report.rows] == ["before", "middle.inner.layer"]
    # The reference runs on these inputs: that the candidate raises is a fault of its own.
    expected = Outcome.FAULT if side == "candidate" else Outcome.INCONCLUSIVE
    assert (report.outcome, report.error) == (expected, message)
    assert [(f.kind, f.module) for f in report.findings] == [("raises", "middle.inner.leaf")] * (side == "candidate")
    assert report.coverage.compared == 2
    assert set(report.coverage.reasons) == {"unfinished"}
    assert report.coverage.compared + sum(report.coverage.reasons.values()) == report.coverage.reference_calls


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_inputs_that_do_not_fit_are_an_error_at_the_root(side: str) -> None:
    with pytest.raises(ForwardError, match=r"the reference raised TypeError in <root> \(Deep\)"):
        qtrace.trace(Deep(), Deep(), {"x": torch.randn(2, 4), "y": 1})


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_ctrl_c_inside_a_model_reports_what_was_compared(side: str) -> None:
    def interrupt(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    models = pair(interrupt, side)
    with pytest.raises(Interrupted) as caught:
        qtrace.trace(*models, torch.randn(2, 4))
    report = caught.value.report
    assert isinstance(report, qtrace.Report)
    assert [row.module for row in report.rows] == ["before", "middle.inner.layer"]
    assert report.outcome is Outcome.INCONCLUSIVE


def test_ctrl_c_between_calls_leaves_nothing_behind() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    models = Deep(), Deep()
    with pytest.raises(Interrupted):
        qtrace.trace(*models, torch.randn(2, 4), progress=stop)
    assert sum(hooks_of(models[0]).values()) == sum(hooks_of(models[1]).values()) == 0


class Catches(nn.Module):
    """Tries a module that raises, and goes on without it; `what` is what it catches."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.risky = Inner(boom)
        self.last = nn.Linear(4, 4)
        self.what = what
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        try:
            x = self.risky(x)
        except self.what:
            x = x + 1
        out: torch.Tensor = self.last(x)
        return out


@pytest.mark.parametrize("what", [ValueError, BaseException])
def test_an_exception_that_the_model_catches_does_not_confuse_the_call_tree(what: Any) -> None:
    model = Catches(what)
    report = qtrace.trace(model, twin(model), torch.randn(2, 4))
    assert [row.module for row in report.rows] == ["first", "risky.layer", "last", ""]
    assert report.outcome is Outcome.CLEAN
    assert report.coverage.reasons == {"raised": 2}


def test_a_bare_except_cannot_keep_the_run_alive() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                try:
                    x = self.layer(x)
                except:  # noqa: E722 - the point of the test
                    x = x * 2
            return x

    class Raises(Stubborn):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return boom(self.layer(x))

    stubborn, raises = Stubborn(), Raises()
    with pytest.raises(ForwardError):
        qtrace.trace(stubborn, raises, torch.randn(2, 4))
    assert sum(hooks_of(stubborn).values()) == 0


def test_a_call_in_another_thread_runs_through_and_is_counted() -> None:
    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.here = nn.Linear(4, 4)
            self.there = nn.Linear(4, 4)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            got: list[torch.Tensor] = []
            worker = threading.Thread(target=lambda: got.append(self.there(x)))
            worker.start()
            worker.join()
            out: torch.Tensor = self.here(x) + got[0]
            return out

    model = Threaded()
    report = qtrace.trace(model, twin(model), torch.randn(2, 4))
    assert report.coverage.reasons == {"in_thread": 1}
    assert report.coverage.reference_calls == 2
    assert report.outcome is Outcome.CLEAN


def test_a_call_under_vmap_runs_through_and_is_counted() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.here = nn.Linear(4, 4)
            self.there = nn.Linear(4, 4)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.here(x) + torch.vmap(self.there)(x)
            return out

    model = Mapped()
    report = qtrace.trace(model, twin(model), torch.randn(2, 4))
    assert report.coverage.reasons == {"in_vmap": 1}
    assert report.outcome is Outcome.CLEAN


def test_a_module_that_both_sides_share_fires_each_side_once() -> None:
    shared = nn.Linear(4, 4)
    model, candidate = nn.Sequential(shared, nn.ReLU()).eval(), nn.Sequential(shared, nn.ReLU()).eval()
    report = qtrace.trace(model, candidate, torch.randn(2, 4))
    assert [(row.module, row.call) for row in report.rows] == [("0", 0), ("1", 0), ("", 0)]
    assert report.coverage.reasons == {}


def test_the_same_model_against_itself() -> None:
    model = Deep()
    report = qtrace.trace(model, model, torch.randn(2, 4))
    assert report.outcome is Outcome.CLEAN
    assert report.coverage.compared == report.coverage.reference_calls == 5


def test_a_scripted_module_is_reported_not_fatal() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scripted = torch.jit.script(nn.Linear(4, 4))
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.scripted(self.layer(x))
            return out

    model = Model()
    report = qtrace.trace(model, twin(model), torch.randn(2, 4))
    assert report.outcome is Outcome.CLEAN
    assert any("take no hooks (scripted …)" in warning for warning in report.warnings)


def test_the_candidate_does_not_run_on_after_the_reference_was_interrupted() -> None:
    ran: list[str] = []

    def interrupt(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    def note(x: torch.Tensor) -> torch.Tensor:
        ran.append("candidate")
        return x

    model, candidate = Deep(interrupt), Deep(note)
    with pytest.raises(Interrupted):
        qtrace.trace(model, candidate, torch.randn(2, 4))
    assert ran == []
