"""Scales moved from a norm into the weights behind it, and all of it quantized: nobody is to blame."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import qtrace
from qtrace.report.records import Outcome, Verdict

WIDTH, LAYERS = 32, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(self.norm(x))))
        return out


def levels(weight: Tensor) -> Tensor:
    step = weight.abs().amax(1, keepdim=True) / 127
    return torch.round(weight / step) * step


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """Return a model and its smoothed and quantized twin."""
    torch.manual_seed(0)
    reference = nn.Sequential(*(Block() for _ in range(LAYERS))).eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for block in candidate:
            assert isinstance(block, Block)
            gains = 0.25 + 2 * torch.rand(WIDTH)
            block.norm.weight.mul_(gains)
            block.norm.bias.mul_(gains)
            block.up.weight.div_(gains)
            for layer in (block.up, block.down):
                layer.weight.copy_(levels(layer.weight))
    return reference, candidate


def traced(reference: nn.Module, candidate: nn.Module) -> qtrace.Report:
    return qtrace.trace(reference, candidate, torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1)))


def test_each_layer_shows_its_own_rounding_and_the_norms_are_absorbed() -> None:
    report = traced(*pair())
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
    for layer in range(LAYERS):
        norm = report.row(f"{layer}.norm")
        assert norm.peir is not None
        assert norm.peir > 0.1
        assert norm.verdict is Verdict.ABSORBED
        assert norm.relation is not None
        assert norm.relation.kind == "channel_gain"
        for name in ("up", "down"):
            own = report.row(f"{layer}.{name}").peir_local
            assert own is not None
            assert 1e-4 < own < 0.02


def test_a_scale_that_nobody_undoes_is_named() -> None:
    reference, candidate = pair()
    block = candidate[2]
    assert isinstance(block, Block)
    with torch.no_grad():
        block.norm.weight.mul_(1.5 - torch.linspace(0, 1, WIDTH))
        block.norm.bias.mul_(1.5 - torch.linspace(0, 1, WIDTH))
    report = traced(reference, candidate)
    assert report.outcome is Outcome.FAULT
    assert report.findings[0].module in ("2.norm", "2.up")
    assert report.row("1.norm").verdict is Verdict.ABSORBED
