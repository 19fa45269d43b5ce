"""Weights on top of each other, weights that tell too little, and the order of calls."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qtrace
from qtrace.engine.align.weights import likeness
from qtrace.report.records import Outcome
from tests.engine.test_alignment import pairs
from tests.engine.test_alignment_weights import aligned

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def stacked(*layers: nn.Linear) -> nn.Linear:
    """Return one layer that computes what these do, one after the other along the features."""
    whole = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    with torch.no_grad():
        whole.weight.copy_(torch.cat([layer.weight for layer in layers]))
        whole.bias.copy_(torch.cat([layer.bias for layer in layers]))
    return whole


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.q(x) * self.k(x) + self.v(x))
        return out


class Together(nn.Module):
    """Computes q, k and v by one layer, which has the name `name`."""

    def __init__(self, other: Apart, name: str) -> None:
        super().__init__()
        self.add_module(name, stacked(other.q, other.k, other.v))
        self.out = copy.deepcopy(other.out)
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.get_submodule(self.name)(x).chunk(3, -1)
        out: torch.Tensor = self.out(q * k + v)
        return out


@pytest.mark.parametrize("name", ["qkv", "q"])
def test_one_projection_for_three_is_fused_also_under_the_name_of_one(name: str) -> None:
    torch.manual_seed(0)
    apart = Apart().eval()
    report = qtrace.trace(apart, Together(apart, name).eval(), X)
    assert report.coverage.reasons == {"fused": 3}
    assert report.outcome is Outcome.CLEAN
    assert {row.module for row in report.rows if row.candidate is not None} == {"", "out"}


def test_three_projections_for_one_are_split() -> None:
    torch.manual_seed(0)
    apart = Apart().eval()
    report = qtrace.trace(Together(apart, "qkv").eval(), apart, X)
    assert report.coverage.reasons == {"split": 1}
    assert [(one.module, one.reason) for one in report.unmatched if one.side == "reference"] == [("qkv", "split")]


class Experts(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(8, 4, bias=False), "down": nn.Linear(4, 8, bias=False)})
            for _ in range(count)
        )
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x
        for expert in self.experts:
            assert isinstance(expert, nn.ModuleDict)
            total = total + expert["down"](expert["up"](x))
        out: torch.Tensor = self.out(total)
        return out


class Packed(nn.Module):
    """All experts in two tensors, one of them turned."""

    def __init__(self, experts: nn.ModuleList) -> None:
        super().__init__()
        weights = [{name: one.get_parameter(f"{name}.weight") for name in ("up", "down")} for one in experts]
        self.up = nn.Parameter(torch.stack([one["up"].T for one in weights]).detach())
        self.down = nn.Parameter(torch.stack([one["down"] for one in weights]).detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,eim,eom->bo", x, self.up, self.down)


class PackedExperts(nn.Module):
    def __init__(self, other: Experts) -> None:
        super().__init__()
        self.experts = Packed(other.experts)
        self.out = copy.deepcopy(other.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(x + self.experts(x))
        return out


def test_experts_in_one_tensor_are_fused_and_only_their_own() -> None:
    torch.manual_seed(0)
    reference = Experts().eval()
    candidate = PackedExperts(reference).eval()
    report = qtrace.trace(reference, candidate, X)
    assert report.coverage.reasons == {"fused": 6}
    assert report.outcome is Outcome.CLEAN
    with torch.no_grad():
        candidate.experts.down[1].normal_()
    assert aligned(reference, candidate).fused == {}


def test_rows_of_one_number_are_no_proof() -> None:
    """Up to its length every such row is the same: two unrelated layers were a pair, with high confidence."""
    torch.manual_seed(0)
    reference, candidate = nn.ModuleDict({"time": nn.Linear(1, 8)}), nn.ModuleDict({"other": nn.Linear(1, 8)})
    assert "other" not in aligned(reference, candidate).pairs
    candidate["other"].load_state_dict(reference["time"].state_dict())
    assert pairs(aligned(reference, candidate)) == {"other": ("time", "weights")}


def test_few_numbers_must_agree_closely() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.2], [0.1, 1.0]]))
        second.weight.copy_(torch.tensor([[1.0, 0.1], [0.3, 1.0]]))
    alike = likeness(first, second)
    assert alike is not None
    assert alike > 0.9, "by chance"
    reference, candidate = nn.ModuleDict({"a": first}), nn.ModuleDict({"x": second})
    assert "x" not in aligned(reference, candidate).pairs
    candidate["x"].load_state_dict(first.state_dict())
    assert pairs(aligned(reference, candidate)) == {"x": ("a", "weights")}


def test_vectors_of_two_numbers_tell_nothing() -> None:
    torch.manual_seed(0)
    norms = nn.LayerNorm(2), nn.LayerNorm(2)
    for norm in norms:
        nn.init.normal_(norm.weight)
    assert likeness(*norms) is None


class Norms(nn.Module):
    """Two norms between two layers, defined in one order and called in another."""

    def __init__(self, defined: str, called: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        for name in defined:
            self.add_module(name, nn.LayerNorm(8))
        self.last = nn.Linear(8, 8)
        self.called = called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for place, name in enumerate(self.called):
            x = self.get_submodule(name)(x).tanh() + place
        out: torch.Tensor = self.last(x)
        return out


def test_between_anchors_it_is_the_order_of_calls_that_counts() -> None:
    reference, candidate = Norms("ab", "ab").eval(), Norms("xy", "yx").eval()
    report = qtrace.trace(reference, candidate, X)
    assert {row.peir for row in report.rows} == {0.0}
    assert report.coverage.fraction == 1.0
