"""Fake quantizers in the code of modules are held against the values that they round, where they run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from statistics import median

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.diagnosis.quantization.quantizer_watch import QuantizerWatch
from qtrace.engine.events import Bound, Call
from qtrace.report.records import Outcome

WIDTH, LAYERS = 32, 4
STEP = 4 / 127


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(self.between(self.norm(x)))))
        return out


class Rounding(Block):
    """The same block, whose own code rounds what it hands to a layer."""

    step: float = STEP

    def between(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.step, 0, -128, 127)


class RoundingByHand(Block):
    """The same, with no operator that tells a scale."""

    step: float = STEP

    def between(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.round(x / self.step), -128, 127) * self.step


def pair(
    steps: Mapping[int, float], kind: type[Rounding] | type[RoundingByHand] = Rounding
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a model and its twin that rounds in each layer; `steps` are those of single layers."""
    torch.manual_seed(0)
    reference = nn.Sequential(*(Block() for _ in range(LAYERS))).eval()
    candidate = nn.Sequential(*(kind() for _ in range(LAYERS))).eval()
    candidate.load_state_dict(reference.state_dict())
    for place, step in steps.items():
        block = candidate[place]
        assert isinstance(block, (Rounding, RoundingByHand))
        block.step = step
    return reference, candidate


def sample() -> Tensor:
    return torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))


def traced(reference: nn.Module, candidate: nn.Module) -> qtrace.Report:
    return qtrace.trace(reference, candidate, sample())


@pytest.mark.parametrize("kind", [Rounding, RoundingByHand])
def test_quantizers_that_fit_end_as_drift(kind: type[Rounding] | type[RoundingByHand]) -> None:
    report = traced(*pair({}, kind))
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


def test_a_range_that_cuts_values_off_is_named_with_the_share_of_them() -> None:
    reference, candidate = pair({2: STEP / 5})
    report = traced(reference, candidate)
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings] == ["2"]
    # THEN the share is that of the values beyond half a step after the last level
    with torch.no_grad():
        taken = reference[2].get_submodule("norm")(reference[:2](sample()))
    share = float(((taken > STEP / 5 * 127.5) | (taken < -STEP / 5 * 128.5)).double().mean())
    (said,) = [one for one in report.findings[0].evidence if "clipped" in one]
    assert f"step {STEP / 5:.4g}, levels 256" in said
    assert float(said.split("clipped ")[1]) == pytest.approx(share, abs=0.01)


def test_a_step_that_is_much_too_coarse_is_named() -> None:
    report = traced(*pair({2: STEP * 10}))
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings] == ["2"]
    (said,) = [one for one in report.findings[0].evidence if "quantizer" in one]
    assert said.startswith("a quantizer in its own code (int8): dead range: its range is ")


@pytest.mark.parametrize("step", [STEP * 1.5, STEP * 0.9])
def test_a_step_a_little_unlike_the_others_is_no_fault(step: float) -> None:
    report = traced(*pair({2: step}))
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


def test_a_clamp_of_codes_that_cuts_values_off_is_named() -> None:
    report = traced(*pair({2: STEP / 5}, RoundingByHand))
    assert report.outcome is Outcome.FAULT
    assert report.findings[0].module == "2"


def test_the_trace_leaves_the_candidate_as_it_is() -> None:
    reference, candidate = pair({2: STEP * 10})
    kept = copy.deepcopy(candidate.state_dict())
    x = torch.randn(8, WIDTH)
    expected = candidate(x)
    traced(reference, candidate)
    assert torch.equal(candidate(x), expected)
    assert all(torch.equal(value, kept[name]) for name, value in candidate.state_dict().items())


NO_ARGUMENTS = Bound({}, (), frozenset())


def watched(watch: QuantizerWatch, path: str, values: Tensor, step: float, levels: tuple[float, float]) -> None:
    """Let a quantizer run in the code of a module."""
    call = Call(path=path, key=path, type="Block", index=0, caller="")
    module = nn.Identity()
    watch.enter(call, module, NO_ARGUMENTS)
    watch.quantizes(values, step, 0, levels, None)
    watch.leave(call, module, values)


def four_bits(values: list[Tensor]) -> QuantizerWatch:
    """Return a watch that saw a quantizer of four bits in each layer, whose range ends with its values."""
    watch = QuantizerWatch()
    for layer, taken in enumerate(values):
        watched(watch, f"layers.{layer}.mlp", taken, float(taken.abs().max()) / 7, (-8.0, 7.0))
    return watch


def test_a_step_far_above_those_of_its_namesakes_is_told_with_the_factor() -> None:
    values = [torch.randn(400, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert four_bits(values).modules() == []
    values[3][0] = 80
    watch = four_bits(values)
    assert watch.modules() == ["layers.3.mlp"]
    relative = [float(taken.abs().max() / 7 / taken.abs().median()) for taken in values]
    times = relative[3] / median(relative[:3] + relative[4:])
    (said,) = watch.sentences("layers.3.mlp")
    assert float(said.split("its step is ")[1].split(" ")[0]) == pytest.approx(times, rel=0.01)
    assert list(watch.sentences("layers.2.mlp")) == []


def test_one_layer_alone_or_other_roles_are_no_measure() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    far = values.clone()
    far[0] = 80
    assert four_bits([values, far]).modules() == []
    watch = QuantizerWatch()
    for path, taken in (("layers.0.norm", values), ("layers.1.norm", values), ("layers.2.mlp", far)):
        watched(watch, path, taken, float(taken.abs().max()) / 7, (-8.0, 7.0))
    assert watch.modules() == []


def test_a_quantizer_of_a_module_without_a_partner_is_that_of_the_module_around_it() -> None:
    watch = QuantizerWatch()
    outer = Call(path="layers.0", key="layers.0", type="Block", index=0, caller="")
    inner = Call(path="layers.0.act_quant", key=None, type="Quantizer", index=0, caller="layers.0")
    module = nn.Identity()
    values = torch.linspace(-1, 1, 100)
    watch.enter(outer, module, NO_ARGUMENTS)
    watch.enter(inner, module, NO_ARGUMENTS)
    watch.quantizes(values, 0.5 / 127, 0, (-128.0, 127.0), None)
    watch.leave(inner, module, values)
    watch.rounds()
    watch.leave(outer, module, values)
    assert watch.modules() == ["layers.0"]
    (said,) = watch.sentences("layers.0")
    assert said.startswith("quantizer act_quant (int8): clipped: ")
    assert watch.rounds_in("layers.0")
    assert not watch.rounds_in("layers.1")
    # WHEN no module with a partner runs, none is noted
    watch.rounds()
    assert watch.unscaled == {"layers.0"}


@pytest.mark.parametrize(("far", "is_told"), [(127.4, False), (128.0, False), (160.0, True)])
def test_codes_far_beyond_their_clamp_are_told(far: float, is_told: bool) -> None:
    watch = QuantizerWatch()
    call = Call(path="layers.0", key="layers.0", type="Block", index=0, caller="")
    codes = torch.linspace(-100, 100, 1000)
    codes[0] = far
    watch.enter(call, nn.Identity(), NO_ARGUMENTS)
    watch.cuts(codes, codes.clamp(-128, 127))
    watch.leave(call, nn.Identity(), codes)
    expected = ["a quantizer in its own code: clipped: 0.10% of the values lie outside of what it represents"]
    assert [said.split(";")[0] for said in watch.sentences("layers.0")] == (expected if is_told else [])
