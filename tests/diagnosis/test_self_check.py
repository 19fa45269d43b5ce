"""Self-checks: what is random, what minds its mode, what changes under hooks, what a run writes to a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from qtrace.diagnosis.self_check import FirstPass, SelfCheck, self_check
from qtrace.engine.lockstep_pass import Fingerprint, Options, Pass
from qtrace.engine.model import Model, SharedTensors, buffers_kept
from qtrace.engine.plan import make_plan
from qtrace.engine.samples import as_samples
from qtrace.report.records import Finding
from tests.helpers.models import Stack, twin


class Net(nn.Module):
    """Two blocks of linear, normalisation and dropout."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(p)) for _ in range(2))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Noisy(nn.Module):
    """A linear layer, to which its own code adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out + torch.rand_like(out)


class Counting(nn.Module):
    """Computes something else with each call, without random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        out: torch.Tensor = self.layer(x) * self.seen
        return out


class OwnGenerator(nn.Module):
    """Draws from a generator that no random state knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.generator = torch.Generator()

    def __deepcopy__(self, memo: Any) -> OwnGenerator:
        return OwnGenerator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out * torch.rand(out.shape, generator=self.generator)


@dataclass(frozen=True)
class Observed(Model):
    """A model that keeps the fingerprints of what it returned."""

    seen: list[Fingerprint] = field(default_factory=list, init=False)

    def entry(self, call: str, sample: Any, at: str = "") -> Callable[[], Any]:
        run = super().entry(call, sample, at)

        def observed() -> Any:
            value = run()
            self.seen.append(Fingerprint(value))
            return value

        return observed


def checked(reference: nn.Module, candidate: nn.Module, inputs: Any) -> SelfCheck:
    """Run a pass, then the self-check; the modes, the buffers and the random state must come out as they were."""
    models = (Observed("reference", reference), Observed("candidate", candidate))
    plan, (sample,) = make_plan(*models), as_samples(inputs)
    modules = [*reference.modules(), *candidate.modules()]
    modes = [module.training for module in modules]
    buffers = [buffer.clone() for model in (reference, candidate) for buffer in model.buffers()]
    with torch.no_grad(), buffers_kept(models):
        done = Pass(models, plan, sample, Options(), own_random=True)
        done.execute()
    state = torch.get_rng_state()
    first = FirstPass(done.random, (models[0].seen[0], models[1].seen[0]), done.drew_random)
    found = self_check(models, plan, sample, "forward", first)
    assert [module.training for module in modules] == modes
    after = [buffer for model in (reference, candidate) for buffer in model.buffers()]
    assert all(torch.equal(old, new) for old, new in zip(buffers, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    return found


def finding(module: str, *, confirmed: bool = False) -> Finding:
    return Finding(rank=1, module=module, call=0, kind="introduces", summary="", confirmed=confirmed)


X = torch.linspace(-1, 1, 32).reshape(4, 8)


def test_nothing_is_said_of_models_that_compute_the_same_twice() -> None:
    net: Any = Net()
    other: Any = twin(net)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    assert checked(net, other, X) == SelfCheck()
    ids = torch.arange(6).reshape(1, 6)
    assert checked(Stack(), Stack(), ids) == SelfCheck()


def test_nothing_suspicious_costs_one_forward_of_the_reference() -> None:
    net: Any = Net()
    other: Any = twin(net)
    calls: list[str] = []
    net.register_forward_hook(lambda *_: calls.append("reference"))
    other.register_forward_hook(lambda *_: calls.append("candidate"))
    checked(net, other, X)
    assert calls == ["reference", "candidate", "reference"]


def test_dropout_alive_on_the_candidate_is_a_finding_at_each_place() -> None:
    net: Any = Net()
    other: Any = twin(net)
    for block in other.blocks:
        block[2].train()
    found = checked(net, other, X)
    assert list(found.varies) == ["blocks.0.2", "blocks.1.2"]
    assert found.varies["blocks.1.2"].startswith("two runs of the candidate on the same inputs differ here (PEIR ")
    (one,) = found.applied([])
    assert (one.module, one.kind, one.members, one.count) == ("blocks.0.2", "introduces", tuple(found.varies), 2)
    assert (
        one.summary == "computes something else each time in the candidate alone: Dropout in training mode with p 0.5"
    )
    (warning,) = found.warnings
    assert "blocks.*.2 (Dropout in training mode with p 0.5)" in warning
    assert ".eval()" in warning


def test_dropout_that_drops_nothing_is_not_alive() -> None:
    net = Net(p=0.0)
    other: Any = twin(net)
    for block in other.blocks:
        block[2].train()
    assert checked(net, other, X) == SelfCheck()


def test_dropout_alive_on_both_sides_is_a_warning_and_no_finding() -> None:
    net: Any = Net()
    net.blocks[0][2].train()
    found = checked(net, copy.deepcopy(net), X)
    assert [w.split(" computes")[0] for w in found.warnings] == ["the reference", "the candidate"]
    assert not found.varies
    assert not found.excused
    assert found.applied([]) == []


def test_dropout_alive_on_the_reference_excuses_what_differs_there() -> None:
    net: Any = Net()
    other: Any = twin(net)
    net.blocks[0][2].train()
    found = checked(net, other, X)
    assert found.excused == {"blocks.0.2"}
    assert found.applied([finding("blocks.0.2"), finding("blocks.1.0")]) == [finding("blocks.1.0")]


@pytest.mark.parametrize("on_both", [True, False])
def test_a_random_operation_is_found_in_the_code_that_draws(on_both: bool) -> None:
    candidate: Any = nn.Sequential(nn.Linear(8, 8), Noisy())
    reference: Any = copy.deepcopy(candidate)
    if not on_both:
        reference[1] = nn.Sequential()
        reference[1].layer = candidate[1].layer
    found = checked(reference.eval(), candidate.eval(), X)
    assert list(found.varies) == ([] if on_both else ["1"])
    assert "1 (Noisy draws random numbers, or keeps state between calls)" in found.warnings[-1]
    assert [one.module for one in found.applied([])] == list(found.varies)


def test_a_random_module_without_partner_is_told_at_what_is_around_it() -> None:
    reference = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU()))
    candidate: Any = twin(reference)
    candidate[1].add_module("noise", nn.Dropout(0.3).train())
    assert list(checked(reference.eval(), candidate, X).varies) == ["1"]


def test_batch_norm_in_training_mode_is_evidence_and_its_buffers_stay() -> None:
    net: Any = Net()
    other: Any = twin(net)
    for block in other.blocks:
        block[1].train()
    found = checked(net, other, X)
    assert found.notes["blocks.1.1"] == "BatchNorm1d is in training mode in the candidate alone"
    assert found.warnings == ("in training mode in the candidate alone: blocks.*.1 (BatchNorm1d); call .eval() on it",)
    (one,) = found.applied([finding("blocks.1.1")])
    assert one.evidence == ("BatchNorm1d is in training mode in the candidate alone",)
    assert not found.varies


def test_what_a_module_in_training_mode_writes_to_its_buffers_is_undone() -> None:
    norm = nn.BatchNorm1d(8).train()
    model = Model("reference", norm)
    mean = norm.running_mean
    assert isinstance(mean, torch.Tensor)
    with torch.no_grad():
        with buffers_kept([model, model]):
            norm(X + 1)
            assert mean.any()
            norm.running_mean = torch.ones(8)
        assert norm.running_mean is mean
        assert not mean.any()
        with pytest.raises(ValueError, match="expected 2D or 3D input"), buffers_kept([model]):
            norm(norm(X + 1).reshape(1, 1, 4, 8))
        assert not mean.any()
        norm(X + 1)
        assert mean.any()


def test_the_fast_path_of_torch_is_named_where_hooks_leave_it() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    inputs = {"src": torch.randn(2, 9, 64), "src_key_padding_mask": padding}
    found = checked(encoder, twin(encoder), inputs)
    (warning,) = found.warnings
    assert "the reference computes something else while hooks are there" in warning
    assert "fast path" in warning
    assert found.applied([]) == []


def test_state_between_calls_and_generators_of_their_own_are_warned_of() -> None:
    kinds: tuple[type[nn.Module], ...] = (Counting, OwnGenerator)
    for kind in kinds:
        found = checked(kind().eval(), nn.Sequential(nn.Linear(8, 8)).eval(), X)
        assert "the reference does not compute the same twice (PEIR " in found.warnings[0]
        assert not found.varies


def test_a_forward_that_raises_the_second_time_is_a_warning() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.done = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.done
            self.done = True
            return x

    found = checked(Once().eval(), nn.Sequential(nn.Identity()).eval(), X)
    assert found.warnings == ("the reference raises AssertionError when it is run again without hooks",)


def test_new_findings_stand_after_the_confirmed_ones() -> None:
    check = SelfCheck(varies={"drop": "differ here: Dropout in training mode", "known": "said before"})
    given = [finding("sure", confirmed=True), finding("known"), finding("guess")]
    found = check.applied(given)
    assert [(one.rank, one.module) for one in found] == [(1, "sure"), (2, "drop"), (3, "known"), (4, "guess")]
    assert found[2].evidence == ("said before",)


def test_shared_weights_that_are_written_are_named() -> None:
    class Writes(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.layer.weight.mul_(0.5)
            out: torch.Tensor = self.layer(x)
            return out

    reference = nn.Sequential(nn.Linear(8, 8))
    shares = Writes(reference[0])
    shared = SharedTensors((Model("reference", reference), Model("candidate", shares)))
    reference(X)
    assert shared.warnings() == []
    shares(X)
    assert shared.written() == ["0.weight", "layer.weight"]
    assert "share 0.weight, layer.weight, which was written" in shared.warnings()[0]
    apart = Writes(copy.deepcopy(reference[0]))
    unshared = SharedTensors((Model("reference", reference), Model("candidate", apart)))
    apart(X)
    assert unshared.warnings() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_a_fingerprint_tells_one_bit(dtype: torch.dtype) -> None:
    for shape in ((), (3,), (67, 53), (5, 1024)):
        one = torch.rand(shape).gt(0.5).to(dtype)
        other = one.clone()
        assert Fingerprint({"a": (one, None)}) == Fingerprint({"a": (other, None)})
        other.view(-1)[-1] = 1 - other.view(-1)[-1].real.to(torch.int64)
        assert Fingerprint({"a": (one, None)}) != Fingerprint({"a": (other, None)})
        assert Fingerprint(one) != Fingerprint((one,))


def test_a_fingerprint_reads_views_where_they_lie() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    assert Fingerprint(whole[:, 1:]) == Fingerprint(whole[:, 1:].clone())
    assert Fingerprint(whole.t()) != Fingerprint(whole.t() + 1)
    assert Fingerprint(float("nan")) == Fingerprint(float("nan"))
    assert Fingerprint(torch.tensor([float("nan")])) == Fingerprint(torch.tensor([float("nan")]))
