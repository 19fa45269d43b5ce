"""The measured noise floor: what the reference's own rounding is, and that neither noise nor faults are mistaken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qtrace
from qtrace.errors import UsageError
from qtrace.report.records import Outcome
from tests.helpers.models import Chain, twin


class Deep(nn.Module):
    """Layers that amplify: rounding noise grows far beyond what their number lets one expect."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(8))
        self.norm = nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            # The difference of two large numbers: it loses digits at every layer.
            x = (layer(x) + 300.0) - 300.0
        return self.norm(x)  # type: ignore[no-any-return]


class OnlyFloat32(Chain):
    """Does not run in float64: a dtype is written into its code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.nn.functional.linear(x, torch.eye(8, dtype=torch.float32)))


def rearranged(model: nn.Module) -> nn.Module:
    """The same in exact arithmetic, in another order of rounding."""
    other = copy.deepcopy(model)
    for layer in other.layers:  # type: ignore[union-attr]
        layer.forward = lambda x, w=layer.weight: (x.double() @ w.double().T).float()
    return other


def test_noise_that_grows_is_not_blamed() -> None:
    torch.manual_seed(0)
    model = Deep().eval()
    x = torch.randn(4, 32)
    estimated = qtrace.trace(model, rearranged(model), x)
    measured = qtrace.trace(model, rearranged(model), x, noise_floor="measured")
    assert estimated.outcome is not Outcome.CLEAN
    assert (measured.outcome, measured.findings) == (Outcome.CLEAN, ())
    assert measured.settings["noise_floor"] == "measured"


def test_each_row_carries_its_floor_and_measured_ones_grow() -> None:
    torch.manual_seed(0)
    model = Deep().eval()
    report = qtrace.trace(model, twin(model), torch.randn(4, 32), noise_floor="measured")
    floors = [report.row(f"layers.{n}").floor or 0.0 for n in range(8)]
    assert floors[7] > 10 * floors[0] > 0


@pytest.mark.parametrize("change", ["eps", "gelu"])
def test_a_small_fault_is_found_above_the_measured_floor(change: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16, eps=1e-6), nn.Linear(16, 16)).eval()
    candidate = twin(model)
    if change == "eps":
        candidate[2].eps = 1e-5  # type: ignore[index]
    else:
        candidate[1].approximate = "tanh"  # type: ignore[index]
    report = qtrace.trace(model, candidate, 0.1 * torch.randn(8, 16), noise_floor="measured")
    assert [finding.module for finding in report.findings] == ["2" if change == "eps" else "1"]


def test_inputs_are_moved_where_the_reference_does_not_run_in_float64() -> None:
    model = OnlyFloat32()
    report = qtrace.trace(model, twin(model), torch.randn(3, 8), noise_floor="measured")
    assert report.outcome is Outcome.CLEAN
    assert not any("noise floor" in warning for warning in report.warnings)


def test_what_cannot_be_measured_is_told() -> None:
    class Tokens(OnlyFloat32):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.one_hot(ids, 8).float())

    model = Tokens()
    report = qtrace.trace(model, twin(model), torch.tensor([1, 2, 3]), noise_floor="measured")
    assert any("the noise floor could not be measured" in warning for warning in report.warnings)


def test_a_wrong_word_says_what_was_expected() -> None:
    model = Chain()
    with pytest.raises(UsageError, match="noise_floor is 'mesured'; expected 'auto' or 'measured' or a number"):
        qtrace.trace(model, twin(model), torch.randn(3, 8), noise_floor="mesured")
