"""One quantized layer among others that are not: what its rounding explains is nobody's fault, the rest is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.records import Outcome
from tests.models import twin


class Rounded(nn.Linear):
    """Computes with its weight on a grid of 8 bits, per output channel; `off` is added to the levels."""

    quant_min, quant_max = -128, 127

    def __init__(self, like: nn.Linear) -> None:
        super().__init__(like.in_features, like.out_features)
        self.load_state_dict(like.state_dict())
        largest = self.weight.detach().abs().amax(1, keepdim=True)
        self.register_buffer("weight_scale", largest / 127)
        self.register_buffer("weight_zero_point", torch.zeros_like(largest))
        self.off = torch.zeros(like.out_features, 1)

    weight_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.round(self.weight / self.weight_scale + self.off).clamp(self.quant_min, self.quant_max)
        return nn.functional.linear(x, levels * self.weight_scale, self.bias)


def pair() -> tuple[nn.Module, nn.Module, Rounded]:
    reference = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4))).eval()
    candidate = twin(reference)
    block = candidate.get_submodule("2")
    assert isinstance(block, nn.Sequential)
    linear = block[0]
    assert isinstance(linear, nn.Linear)
    layer = Rounded(linear)
    block[0] = layer
    return reference, candidate, layer


def traced(reference: nn.Module, candidate: nn.Module) -> qtrace.Report:
    return qtrace.trace(reference, candidate, torch.randn(16, 32, generator=torch.Generator().manual_seed(1)))


def test_rounding_that_its_scales_explain_is_drift() -> None:
    reference, candidate, _ = pair()
    report = traced(reference, candidate)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
    row = report.row("2.0")
    assert row.peir_local is not None
    assert row.peir_local > 1e-4


def test_a_layer_that_truncates_is_named() -> None:
    reference, candidate, layer = pair()
    layer.off -= 0.5
    report = traced(reference, candidate)
    assert [(finding.kind, finding.module) for finding in report.findings] == [("introduces", "2.0")]


@pytest.mark.parametrize("row", [0, 17])
def test_a_row_of_the_weight_that_is_wrong_is_named(row: int) -> None:
    reference, candidate, layer = pair()
    with torch.no_grad():
        layer.weight[row] *= -1
    report = traced(reference, candidate)
    assert [(finding.kind, finding.module) for finding in report.findings] == [("introduces", "2.0")]


def test_scales_that_cut_the_weight_off_are_named_with_a_remedy() -> None:
    reference, candidate, layer = pair()
    layer.get_buffer("weight_scale").div_(2)
    report = traced(reference, candidate)
    assert [finding.module for finding in report.findings] == ["2.0"]
    assert any("clipped" in said for said in report.findings[0].evidence)
