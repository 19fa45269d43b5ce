"""Stored traces against each other and against live models: the same rows as when both ran."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.engine.samples import Sample
from qtrace.errors import ForwardError, UsageError
from qtrace.report.records import Outcome, Row, Status, Verdict
from qtrace.traces import Form, Trace, skeleton
from qtrace.traces.capture import capture
from qtrace.traces.reader import samples_of
from tests.helpers.models import Cache, Chain, Returns, Stack, Wrapped, hooks_of, twin, wrap_children

IDS = {"ids": torch.arange(12).reshape(1, 12)}
X = torch.linspace(-1, 1, 8).reshape(1, 8)
Models = tuple[nn.Module, nn.Module]


class NoMask(Stack):
    """Hands its layers a mask that blocks nothing."""

    def mask(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        return torch.zeros(hidden.shape[-2], hidden.shape[-2])


class Cached(nn.Module):
    """Hands one cache to every layer, each of which writes to it."""

    def __init__(self, fault: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Writes(fault if n == 1 else 0.0) for n in range(3))
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        cache = Cache(torch.zeros(1, 8))
        for layer in self.layers:
            x = layer(x, cache)
        return x, cache


class Writes(nn.Module):
    def __init__(self, fault: float) -> None:
        super().__init__()
        self.linear, self.fault = nn.Linear(8, 8), fault

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        cache.keys = torch.cat((cache.keys, self.linear(x) + self.fault))
        return x + cache.keys.sum(0, keepdim=True)


class Unnamed(nn.Module):
    """Wraps without naming its parameters, and does not say what it stands for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.odd = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.odd(*args, **kwargs)


class Swallows(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            self.second(x[:, :3])
        except RuntimeError:
            x = x + 1
        return super().forward(x)


def weights_off(model: nn.Module, name: str, by: float = 0.5) -> nn.Module:
    other = twin(model)
    with torch.no_grad():
        # Not all: after a norm, a constant on a whole row of weights changes nothing.
        weight = other.get_parameter(name).view(-1)
        weight[::2].add_(by)
    return other


def same_weights(model: nn.Module, of: nn.Module) -> nn.Module:
    model.load_state_dict(of.state_dict())
    return model


def mask_bug() -> Models:
    reference = Stack()
    return reference, same_weights(NoMask(), reference)


def cached() -> Models:
    reference = Cached()
    return reference, same_weights(Cached(0.5), reference)


def unnamed() -> Models:
    reference = Stack()
    other = weights_off(reference, "layers.1.out.weight")
    assert isinstance(other, Stack)
    other.layers = nn.ModuleList(Unnamed(layer) for layer in other.layers)
    return reference, other.eval()


PAIRS: dict[str, tuple[Callable[[], Models], Any]] = {
    "the same": (lambda: (m := Stack(), twin(m)), IDS),
    "a mask": (mask_bug, IDS),
    "a weight": (lambda: (m := Stack(), weights_off(m, "layers.0.value.weight")), IDS),
    "wrapped": (lambda: (m := Stack(), wrap_children(weights_off(m, "layers.1.norm.weight"))), IDS),
    "moved below": (lambda: (m := Stack(), Wrapped(weights_off(m, "head.bias"))), IDS),
    "unnamed wrappers": (unnamed, IDS),
    "called twice, in place": (lambda: (m := Chain(), weights_off(m, "second.bias")), X),
    "a cache": (cached, X),
    "an exception inside": (lambda: (m := Swallows(), weights_off(m, "first.bias")), X),
    "NaN": (lambda: (m := Chain(), weights_off(m, "second.bias", math.nan)), X),
    "another dtype": (lambda: (m := Stack(), twin(m).double()), IDS),
    "other shapes": (lambda: (Returns(lambda y: (y, y.t())), Returns(lambda y: (y, y[None]))), X.reshape(2, 4)),
    "several samples": (lambda: (m := Stack(), weights_off(m, "layers.1.query.bias")), [IDS, {"ids": IDS["ids"] + 2}]),
}


def same_rows(live: qtrace.Report, stored: qtrace.Report) -> None:
    """Check that all but the verdicts, which a forced pass knows more of, are the same."""
    assert len(live.rows) == len(stored.rows) > 0
    for one, other in zip(live.rows, stored.rows, strict=True):
        for field in dataclasses.fields(Row):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            if isinstance(mine, float) and isinstance(theirs, float):
                assert theirs == pytest.approx(mine, rel=1e-12, abs=0.0, nan_ok=True), (one.module, field.name)
            elif field.name != "verdict":
                assert mine == theirs, (one.module, field.name)
    assert live.arguments == stored.arguments
    assert live.coverage == stored.coverage
    assert live.unmatched == stored.unmatched
    assert live.inputs == stored.inputs


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., nn.Module]:
    """Return a function that captures a model and opens its trace."""
    count = iter(range(100))

    def captured(model: nn.Module, inputs: Any, form: Form | None = None, **more: Any) -> nn.Module:
        folder = tmp_path / f"t{next(count)}"
        capture(model, inputs, folder, form, **more)
        return skeleton(Trace(folder))

    return captured


@pytest.mark.parametrize("name", PAIRS)
def test_the_rows_are_those_of_the_live_run(name: str, stored: Callable[..., nn.Module]) -> None:
    make, inputs = PAIRS[name]
    models = make()
    traces = [stored(model, inputs) for model in models]
    live = qtrace.trace(*models, inputs, local=False)
    for reference, candidate in ((traces[0], traces[1]), (models[0], traces[1]), (traces[0], models[1])):
        found = qtrace.trace(reference, candidate, inputs)
        same_rows(live, found)
        assert (found.outcome is Outcome.CLEAN) == (live.outcome is Outcome.CLEAN)
        assert not any(finding.confirmed for finding in found.findings)


BLAMED = {
    "the same": None,
    "a mask": ("miscalls", "", "mask"),
    "a weight": ("introduces", "layers.0.value", None),
    "wrapped": ("introduces", "layers.1.norm", None),
    "moved below": ("introduces", "head", None),
    "unnamed wrappers": ("introduces", "layers.1.out", None),
    "called twice, in place": ("introduces", "second", None),
    "a cache": ("introduces", "layers.1", None),
    "another dtype": None,
}


@pytest.mark.parametrize("name", BLAMED)
def test_the_first_finding_is_that_of_the_live_run(name: str, stored: Callable[..., nn.Module]) -> None:
    make, inputs = PAIRS[name]
    models = make()
    found = qtrace.trace(stored(models[0], inputs), stored(models[1], inputs), inputs)
    live = qtrace.trace(*models, inputs)
    told = [(f.kind, f.module, f.argument) for f in (*found.findings[:1], *live.findings[:1])]
    assert told == ([] if BLAMED[name] is None else [BLAMED[name]] * 2)


def test_a_finding_says_where_and_what_differs(stored: Callable[..., nn.Module]) -> None:
    reference, candidate = mask_bug()
    (finding,) = qtrace.trace(stored(reference, IDS), stored(candidate, IDS), IDS).findings
    live = qtrace.trace(reference, candidate, IDS).findings[0]
    assert finding.source is not None
    where = finding.source["reference"]
    assert (Path(where["file"]).name, where["function"]) == ("models.py", "forward")
    line = (Path(__file__).parents[1] / "helpers" / "models.py").read_text().splitlines()[where["line"] - 1]
    assert "layer(hidden, mask=mask)" in line
    assert finding.callees == live.callees
    assert (finding.summary, finding.confirmed, finding.graft) == (live.summary, False, None)
    (finding,) = qtrace.trace(stored(reference, IDS), stored(weights_off(reference, "head.bias"), IDS), IDS).findings
    assert finding.evidence[-1] == "bias differs"
    live_finding = qtrace.trace(reference, stored(weights_off(reference, "head.bias"), IDS), IDS).findings[0]
    assert live_finding.evidence[-1] == "bias differs"


def test_attributes_and_dtypes_are_evidence(stored: Callable[..., nn.Module]) -> None:
    def model(eps: float) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)], nn.LayerNorm(8, eps=eps)).eval()

    report = qtrace.trace(stored(model(1e-5), X), stored(model(0.5), X), X)
    assert report.findings[0].module == "4"
    assert "eps 1e-05 against 0.5" in report.findings[0].evidence
    assert any("eps 1e-05 against 0.5" in note for note in report.static)


def test_no_hook_is_left_on_the_live_side(stored: Callable[..., nn.Module]) -> None:
    reference, candidate = mask_bug()
    qtrace.trace(stored(reference, IDS), candidate, IDS)
    assert all(count == 0 for count in hooks_of(candidate).values())


def test_the_live_candidate_may_raise(stored: Callable[..., nn.Module]) -> None:
    def fails(y: torch.Tensor) -> torch.Tensor:
        raise ValueError("too bad")

    with pytest.raises(ForwardError, match="the candidate raised ValueError in <root>") as raised:
        qtrace.trace(stored(Returns(lambda y: y), torch.ones(1, 4)), Returns(fails), torch.ones(1, 4))
    report: Any = raised.value.report
    assert report.findings[0].kind == "raises"


def test_a_part_is_compared_where_a_part_was_stored(stored: Callable[..., nn.Module]) -> None:
    reference, candidate = mask_bug()
    live = qtrace.trace(reference, candidate, IDS, only=["layers.*"], local=False)
    for pair in (
        (stored(reference, IDS, only=["layers.*"]), stored(candidate, IDS)),
        (stored(reference, IDS), stored(candidate, IDS, only=["layers.*"])),
        (stored(reference, IDS, only=["layers.*"]), candidate),
    ):
        found = qtrace.trace(*pair, IDS)
        same_rows(live, found)
        assert found.findings == ()
        assert any("holds a part of the modules" in warning for warning in found.warnings)
    found = qtrace.trace(stored(reference, IDS), stored(candidate, IDS), IDS, only=["layers.*"])
    same_rows(live, found)
    assert any("a part of the modules is left out" in warning for warning in found.warnings)


def test_without_arguments_the_outputs_are_the_same_and_nobody_is_blamed(stored: Callable[..., nn.Module]) -> None:
    reference, candidate = mask_bug()
    live = qtrace.trace(reference, candidate, IDS, local=False)
    for pair in (
        (stored(reference, IDS, Form(arguments=False)), stored(candidate, IDS)),
        (reference, stored(candidate, IDS, Form(arguments=False))),
    ):
        found = qtrace.trace(*pair, IDS)
        assert [(row.module, row.peir, row.mean) for row in found.rows] == [
            (row.module, row.peir, row.mean) for row in live.rows
        ]
        assert (found.arguments, found.findings, found.outcome) == ((), (), Outcome.FAULT)
        assert any("holds no arguments" in warning for warning in found.warnings)


def test_sketches_bound_what_the_whole_tensors_show(stored: Callable[..., nn.Module]) -> None:
    torch.manual_seed(1)
    reference = nn.Sequential(nn.Linear(8, 3000), nn.Tanh(), nn.Linear(3000, 8)).eval()
    candidate = weights_off(reference, "0.bias", 1e-3)
    live = qtrace.trace(reference, candidate, X, local=False)
    small = Form(sketches=True)
    pairs = (
        (stored(reference, X, small), stored(candidate, X, small)),
        (stored(reference, X), stored(candidate, X, small)),
        (stored(reference, X, small), candidate),
    )
    for pair in pairs:
        found = qtrace.trace(*pair, X)
        assert found.outcome is Outcome.FAULT
        for whole, few in zip(live.rows, found.rows, strict=True):
            assert few.peir is not None
            assert whole.peir is not None
            assert few.reference is not None
            assert whole.reference is not None
            assert (few.module, few.reference.shape) == (whole.module, whole.reference.shape)
            assert 0.5 * whole.peir <= few.peir <= whole.peir * (1 + 1e-9)
            assert few.mean == pytest.approx(whole.mean, rel=0.2)
        assert any("sketches" in warning for warning in found.warnings)


def test_sketches_of_other_shapes_are_a_mismatch(stored: Callable[..., nn.Module]) -> None:
    wide = torch.ones(1, 4)
    reference, candidate = (Returns(lambda y, n=n: y.repeat(n, 1)) for n in (2000, 4000))
    found = qtrace.trace(
        stored(reference, wide, Form(sketches=True)), stored(candidate, wide, Form(sketches=True)), wide
    )
    row = found.row("")
    assert (row.status, row.verdict) == (Status.SHAPE_MISMATCH, Verdict.STRUCTURE)
    assert row.reference is not None
    assert row.reference.shape == (2000, 4)


def test_what_was_stored_narrower_agrees_up_to_its_rounding(stored: Callable[..., nn.Module]) -> None:
    reference = Stack()
    narrow = stored(reference, IDS, Form(cast="bfloat16"))
    found = qtrace.trace(reference, narrow, IDS)
    assert all(row.verdict in (Verdict.EQUAL, None) for row in found.rows)
    assert found.findings == ()
    assert any("captured as bfloat16" in warning for warning in found.warnings)
    assert qtrace.trace(narrow, narrow, IDS).outcome is Outcome.CLEAN


def test_what_only_storing_rounded_is_no_drift(stored: Callable[..., nn.Module]) -> None:
    model = Stack()
    found = qtrace.trace(stored(model, IDS), stored(model, IDS, Form(cast="bfloat16")), IDS)
    assert found.outcome is Outcome.CLEAN
    coarse = twin(model).bfloat16()
    # Here the candidate itself is coarser.
    assert qtrace.trace(stored(model, IDS), stored(coarse, IDS), IDS).outcome is Outcome.DRIFT


def test_where_nobody_can_be_told_it_is_no_drift(stored: Callable[..., nn.Module]) -> None:
    model = Chain()
    candidate = weights_off(model, "second.weight", by=0.01)
    found = qtrace.trace(stored(model, X), stored(candidate, X), X)
    assert (found.outcome, found.findings) == (Outcome.FAULT, ())
    assert any("which module is at fault was not found out" in warning for warning in found.warnings)
    assert found.settings["stored"] == ["reference", "candidate"]


def test_other_inputs_are_refused(stored: Callable[..., nn.Module]) -> None:
    model = Stack()
    trace, other = stored(model, IDS), {"ids": IDS["ids"] + 1}
    with pytest.raises(UsageError, match=r"on other inputs: ids int64 \[1,12\].* there, .* here; capture both"):
        qtrace.trace(trace, model, other)
    with pytest.raises(UsageError, match="captured on other inputs: attention_mask is new"):
        qtrace.trace(trace, model, {**IDS, "attention_mask": torch.ones(1, 12)})
    with pytest.raises(UsageError, match="captured on other inputs"):
        qtrace.trace(trace, stored(model, other), IDS)
    with pytest.raises(UsageError, match="another number of samples, 1 and not 2"):
        qtrace.trace(trace, model, [IDS, IDS])
    with pytest.raises(UsageError, match="noise of a stored reference"):
        qtrace.trace(trace, model, IDS, noise_floor="measured")


def test_inputs_of_another_dtype_are_a_warning(stored: Callable[..., nn.Module]) -> None:
    model = Chain()
    found = qtrace.trace(stored(model, X), twin(model).double(), X.double())
    assert any("inputs of another dtype: 0 float32" in warning for warning in found.warnings)


def test_inputs_come_out_of_a_trace(stored: Callable[..., nn.Module]) -> None:
    def of(model: nn.Module, inputs: Any, form: Form | None = None) -> list[Sample]:
        trace = stored(model, inputs, form).trace
        assert isinstance(trace, Trace)
        return samples_of(trace)

    (sample,) = of(Stack(), IDS)
    assert sample.args == ()
    assert torch.equal(sample.kwargs["ids"], IDS["ids"])
    (sample,) = of(Chain(), X)
    assert torch.equal(sample.args[0], X)
    with pytest.raises(UsageError, match="inputs cannot be taken from the trace: it holds none"):
        of(Stack(), IDS, Form(arguments=False))


class Says(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def again(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(self.linear(x)) + 1
        return y


def test_another_entry_than_forward(stored: Callable[..., nn.Module]) -> None:
    reference = Says().eval()
    candidate = weights_off(reference, "linear.bias")
    live = qtrace.trace(reference, candidate, X, call="again", local=False)
    one, other = (stored(model, X, call="again") for model in (reference, candidate))
    same_rows(live, qtrace.trace(one, other, X, call="again"))
    assert any(row.output == "again()" for row in live.rows)
    with pytest.raises(UsageError, match="was captured by --call again, not forward; give --call again"):
        qtrace.trace(one, other, X)


def test_random_numbers_are_a_warning_and_the_seed_makes_them_the_same(stored: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    one, other = (stored(model, X, seed=3) for _ in range(2))
    found = qtrace.trace(one, other, X)
    assert found.outcome is Outcome.CLEAN
    assert any("the reference drew random numbers" in warning for warning in found.warnings)
    assert any("training mode" in warning for warning in found.warnings)


def test_a_trace_of_another_order_of_calls(stored: Callable[..., nn.Module]) -> None:
    class Swapped(Stack):
        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            early = self.head(self.embed(ids))
            return {**super().forward(ids), "early": early}

    reference = Stack()
    candidate = same_weights(Swapped(), reference)
    live = qtrace.trace(reference, candidate, IDS, local=False)
    same_rows(live, qtrace.trace(stored(reference, IDS), stored(candidate, IDS), IDS, local=False))
