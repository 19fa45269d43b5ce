"""One quantized layer among others that are not: what its rounding explains is nobody's fault, the rest is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.report.records import Outcome
from tests.helpers.models import twin


class Rounded(nn.Linear):
    """Computes with its weight on a grid, per output channel; `off` is added to the levels, `gain` multiplies them."""

    def __init__(self, like: nn.Linear, bits: int = 8) -> None:
        super().__init__(like.in_features, like.out_features)
        self.load_state_dict(like.state_dict())
        self.quant_min, self.quant_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        largest = self.weight.detach().abs().amax(1, keepdim=True)
        self.register_buffer("weight_scale", largest / self.quant_max)
        self.register_buffer("weight_zero_point", torch.zeros_like(largest))
        self.off = torch.zeros(like.out_features, 1)
        self.gain = torch.ones(like.out_features, 1)

    weight_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.round(self.weight / self.weight_scale + self.off).clamp(self.quant_min, self.quant_max)
        return nn.functional.linear(x, levels * self.gain * self.weight_scale, self.bias)


def pair(bits: int = 8, width: int = 32) -> tuple[nn.Module, nn.Module, Rounded]:
    reference = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(4))).eval()
    candidate = twin(reference)
    block = candidate.get_submodule("2")
    assert isinstance(block, nn.Sequential)
    linear = block[0]
    assert isinstance(linear, nn.Linear)
    layer = Rounded(linear, bits)
    block[0] = layer
    return reference, candidate, layer


def traced(reference: nn.Module, candidate: nn.Module) -> qtrace.Report:
    first = reference.get_submodule("0.0")
    assert isinstance(first, nn.Linear)
    inputs = torch.randn(16, first.in_features, generator=torch.Generator().manual_seed(1))
    return qtrace.trace(reference, candidate, inputs)


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


def test_one_row_of_many_that_is_wrong_shows_beside_four_bits() -> None:
    reference, candidate, layer = pair(bits=4, width=512)
    assert traced(reference, candidate).findings == ()
    layer.gain[7] = 2
    report = traced(reference, candidate)
    assert [(finding.kind, finding.module) for finding in report.findings] == [("introduces", "2.0")]


def test_a_bias_that_is_lost_is_named_however_small() -> None:
    reference, candidate, layer = pair(bits=4)
    with torch.no_grad():
        for linear in (reference.get_submodule("2.0"), layer):
            linear.get_parameter("bias").mul_(0.03)
    assert traced(reference, candidate).findings == ()
    layer.register_parameter("bias", None)
    report = traced(reference, candidate)
    assert [(finding.kind, finding.module) for finding in report.findings] == [("introduces", "2.0")]


def test_a_token_much_larger_than_all_others_is_no_reason_to_blame_rounding() -> None:
    reference, candidate, _ = pair()
    block = candidate.get_submodule("0")
    linear = reference.get_submodule("0.0")
    assert isinstance(block, nn.Sequential)
    assert isinstance(linear, nn.Linear)
    block[0] = Rounded(linear)
    candidate.get_submodule("2").load_state_dict(reference.get_submodule("2").state_dict(), strict=False)
    inputs = torch.randn(600, 32, generator=torch.Generator().manual_seed(1))
    inputs[123] *= 30
    report = qtrace.trace(reference, candidate, inputs)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
