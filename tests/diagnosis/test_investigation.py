"""Who is named where it is easily got wrong: nobody for a convention or for noise, the cause for what it spoils."""

from __future__ import annotations

import copy

import torch
from torch import nn

import qtrace
from qtrace.report.records import Outcome


class Block(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


def pair() -> tuple[Net, Net, torch.Tensor]:
    torch.manual_seed(0)
    reference = Net().eval()
    return reference, copy.deepcopy(reference), torch.randn(3, 16, 32)


def folded(model: Net) -> Net:
    """Scales go from the norms into the linears after them, which compute the same in exact arithmetic."""
    for layer in model.layers:
        scale = torch.rand(32) * 4 + 0.25
        with torch.no_grad():
            layer.norm.weight.mul_(scale)  # type: ignore[union-attr, operator]
            layer.norm.bias.mul_(scale)  # type: ignore[union-attr, operator]
            layer.up.weight.div_(scale)  # type: ignore[union-attr, operator]
    return model


def rounded(model: Net, levels: int = 127) -> Net:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                step = module.weight.abs().amax(1, keepdim=True) / levels
                module.weight.copy_((module.weight / step).round() * step)
    return model


def test_folded_scales_and_int8_weights_are_nobodys_fault() -> None:
    reference, candidate, x = pair()
    report = qtrace.trace(reference, rounded(folded(candidate)), x)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


def test_a_row_among_folded_scales_and_int8_weights_is_named() -> None:
    reference, candidate, x = pair()
    rounded(folded(candidate))
    with torch.no_grad():
        candidate.layers[1].down.weight[5].neg_()  # type: ignore[union-attr, index]
    assert qtrace.trace(reference, candidate, x).findings[0].module == "layers.1.down"


def test_a_forward_that_returns_a_weight_keeps_it() -> None:
    # What a patched module returns may be somebody's: it must not be written into.
    reference, candidate, x = pair()
    for model in (reference, candidate):
        table = nn.Parameter(torch.randn(3, 16, 32))
        model.register_parameter("table", table)
        model.layers[0].up.forward = lambda x, w=table: torch.cat([x + w.data] * 2, -1)  # type: ignore[union-attr]
        model.layers[1].norm.forward = lambda x, w=table: w.data  # type: ignore[union-attr]
    before = [p.clone() for model in (reference, candidate) for p in model.parameters()]
    qtrace.trace(reference, candidate, x, local=True)
    after = [p for model in (reference, candidate) for p in model.parameters()]
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))


def test_an_unused_module_with_other_weights_is_not_to_blame() -> None:
    class Own(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.used, self.unused, self.plus = nn.Linear(8, 8), nn.Linear(8, 8), shift

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + (0.5 if self.plus else 0.0)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    reference = nn.Sequential(Own(0.0), nn.Linear(8, 8)).eval()
    candidate = copy.deepcopy(reference)
    candidate[0].plus = 1.0  # type: ignore[assignment]
    nn.init.normal_(candidate[0].unused.weight)  # type: ignore[arg-type, union-attr]
    assert [finding.module for finding in qtrace.trace(reference, candidate, torch.randn(4, 8)).findings] == ["0"]


def test_weights_that_only_the_code_around_reads_are_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.table.weight)

    torch.manual_seed(0)
    reference = nn.Sequential(Own(), nn.Linear(8, 8)).eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate[0].table.weight[3].neg_()  # type: ignore[union-attr, index]
    weight = candidate[0].table.weight.clone()  # type: ignore[union-attr, operator]
    report = qtrace.trace(reference, candidate, torch.randn(4, 8))
    assert [(finding.module, finding.kind) for finding in report.findings] == [("0.table", "introduces")]
    assert torch.equal(candidate[0].table.weight, weight)  # type: ignore[union-attr, arg-type]


def test_a_counter_is_as_before() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.calls: torch.Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.linear(x) + self.calls  # type: ignore[no-any-return]

    reference = Counts().eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.linear.weight[0].neg_()
    report = qtrace.trace(reference, candidate, torch.randn(4, 8))
    assert [finding.module for finding in report.findings] == ["linear"]
    assert float(reference.calls) == float(candidate.calls) == 0


def test_dropout_alive_on_the_reference_alone_blames_nobody() -> None:
    reference = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    report = qtrace.trace(reference, copy.deepcopy(reference).eval(), torch.randn(64, 8))
    assert report.findings == ()
    assert any("the reference computes something else each time" in warning for warning in report.warnings)


def test_nan_is_healed_only_where_it_goes_away() -> None:
    reference, candidate, x = pair()
    with torch.no_grad():
        candidate.layers[2].down.weight[3] = torch.nan  # type: ignore[union-attr, operator]
    (finding,) = qtrace.trace(reference, candidate, x).findings
    assert (finding.module, finding.kind, finding.confirmed) == ("layers.2.down", "non_finite", True)
    assert finding.graft is not None
    assert finding.graft["after"] < 1e-5


def test_further_samples_that_differ_are_told_of() -> None:
    reference, candidate, x = pair()
    with torch.no_grad():
        candidate.layers[2].down.weight[3].neg_()  # type: ignore[union-attr, index]
    report = qtrace.trace(reference, candidate, [x, x + 1.0])
    assert [finding.module for finding in report.findings] == ["layers.2.down"]
    assert any("samples 1 differ as well: only 0 was looked into" in warning for warning in report.warnings)


def test_autocast_in_the_candidate_alone_is_drift() -> None:
    class Cast(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    reference, candidate, x = pair()
    candidate.__class__ = Cast
    report = qtrace.trace(reference, candidate, x)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


def test_coarse_weights_between_modules_without_any_are_nobodys_fault() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.1), nn.ReLU(), nn.Identity(), nn.Flatten(2)) for _ in range(3)
    ]
    reference = nn.Sequential(*layers, nn.Linear(32, 8)).eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for module in candidate.modules():
            if isinstance(module, nn.Linear):
                step = module.weight.abs().amax(1, keepdim=True) / 7
                module.weight.copy_((module.weight / step).round() * step)
    report = qtrace.trace(reference, candidate, torch.randn(3, 16, 32))
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
