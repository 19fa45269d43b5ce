"""What is computed in one with others is compared where the last of them returns: no reason to say nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import qtrace
from qtrace.engine.samples import as_samples
from qtrace.report.records import Coverage, Outcome
from qtrace.sources.wrappers import apply_wrapper


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for place in range(3):
            self.add_module(f"conv{place}", nn.Conv2d(3, 3, 3, padding=1))
            self.add_module(f"norm{place}", nn.BatchNorm2d(3))
            self.add_module(f"act{place}", nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for place in range(3):
            for name in ("conv", "norm", "act"):
                x = self.get_submodule(f"{name}{place}")(x)
        return x


def test_fused_modules_count_as_compared_where_the_last_one_returns() -> None:
    reference = Net().eval()
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    candidate = apply_wrapper("torch_ao", reference, as_samples(image), {"mode": "fx"})
    report = qtrace.trace(reference, candidate, image)
    assert report.coverage == Coverage(9, 3, {"fused": 6})
    assert report.outcome is Outcome.DRIFT
    assert report.warnings == ()


def test_nothing_is_accounted_for_where_nothing_was_compared() -> None:
    assert Coverage(6, 0, {"fused": 6}).accounted == 0
    assert Coverage(6, 2, {"fused": 2, "no_partner": 2}).accounted == 4 / 6
    assert Coverage().accounted == 0
