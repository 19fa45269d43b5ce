"""A quantized candidate is judged without its rounding: what is right is drift, and a fault is told by its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

import qtrace
from qtrace.diagnosis.quantization.input_faults import input_fault
from qtrace.report.records import Outcome

WIDTH, HIDDEN = 32, 64
NAMES = ("first", "second", "third")


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(WIDTH, HIDDEN)
        self.second: nn.Module = nn.Linear(HIDDEN, HIDDEN)
        self.third: nn.Module = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


@dataclass(frozen=True)
class Fault:
    """What is wrong with one layer's stored codes."""

    lost_bias: bool = False
    zero_point: int = 0
    reversed_rows: bool = False


RIGHT = Fault()


class Quantizes(Protocol):
    """Makes a quantized twin of a model."""

    def __call__(self, reference: Mlp, bits: int, fault: Fault = RIGHT) -> Mlp: ...


def step_of(weight: Tensor, bits: int) -> Tensor:
    step: Tensor = weight.detach().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return step


class Packed(nn.Module):
    """A linear layer that stores codes, a step for each row and a zero point."""

    def __init__(self, layer: nn.Linear, bits: int, fault: Fault) -> None:
        super().__init__()
        step = step_of(layer.weight, bits)
        codes = (layer.weight.detach() / step).round().to(torch.int8)
        self.codes: Tensor
        self.step: Tensor
        self.register_buffer("codes", codes.flip(0) if fault.reversed_rows else codes)
        self.register_buffer("step", step.flip(0) if fault.reversed_rows else step)
        self.zero_point = fault.zero_point
        self.added = None if fault.lost_bias else layer.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, (self.codes.float() - self.zero_point) * self.step, self.added)


def model() -> Mlp:
    torch.manual_seed(0)
    return Mlp().eval()


def packed(reference: Mlp, bits: int, fault: Fault = RIGHT) -> Mlp:
    """Return a twin of packed layers, the second of which has the fault."""
    made = copy.deepcopy(reference)
    for name in NAMES:
        layer = reference.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(made, name, Packed(layer, bits, fault if name == "second" else RIGHT))
    return made


def weight_only(reference: Mlp, bits: int, fault: Fault = RIGHT) -> Mlp:
    """Return a twin whose weights are rounded and stored as floats."""
    made = copy.deepcopy(reference)
    with torch.no_grad():
        for name in NAMES:
            layer = made.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            step = step_of(layer.weight, bits)
            codes = (layer.weight / step).round()
            if name == "second":
                codes = codes - fault.zero_point
                if fault.reversed_rows:
                    codes, step = codes.flip(0), step.flip(0)
            layer.weight.copy_(codes * step)
    return made


def traced(reference: nn.Module, candidate: nn.Module) -> qtrace.Report:
    return qtrace.trace(reference, candidate, torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1)))


BITS = pytest.mark.parametrize("bits", [8, 4])
MADE = pytest.mark.parametrize("made", [packed, weight_only])


@BITS
@MADE
def test_right_quantization_is_drift_and_leaves_the_candidate_as_it_was(made: Quantizes, bits: int) -> None:
    reference = model()
    candidate = made(reference, bits)
    before = dict(candidate.named_modules())
    attributes = {name: dict(vars(module)) for name, module in before.items()}
    held = {name: dict(module._parameters) for name, module in before.items()}
    values = copy.deepcopy(candidate.state_dict())
    x = torch.randn(8, WIDTH)
    expected = candidate(x)
    report = traced(reference, candidate)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
    # THEN nothing of the candidate was replaced
    after = dict(candidate.named_modules())
    assert all(after[name] is module for name, module in before.items())
    assert {name: set(vars(module)) for name, module in after.items()} == {
        name: set(kept) for name, kept in attributes.items()
    }
    assert all("forward" not in vars(module) for module in after.values())
    for name, module in after.items():
        assert module._parameters.keys() == held[name].keys()
        assert all(module._parameters[key] is parameter for key, parameter in held[name].items())
    assert all(torch.equal(value, values[name]) for name, value in candidate.state_dict().items())
    assert torch.equal(candidate(x), expected)


def test_a_forward_of_the_candidate_own_is_kept() -> None:
    reference = model()
    candidate = packed(reference, 4)
    own = candidate.second.forward
    candidate.second.__dict__["forward"] = own
    report = traced(reference, candidate)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())
    assert vars(candidate.second)["forward"] is own


@MADE
@BITS
def test_rows_in_another_order_are_named_as_such(made: Quantizes, bits: int) -> None:
    reason = "weight has the reference's rows in another order (0 is 63, 1 is 62, 2 is 61, …)"
    _check_reason(model(), made, bits, Fault(reversed_rows=True), reason)


@pytest.mark.parametrize(("made", "bits"), [(packed, 4), (weight_only, 4), (weight_only, 8)])
@pytest.mark.parametrize(("zero_point", "side"), [(1, "low"), (-1, "high")])
def test_a_zero_point_off_by_one_is_named_as_such(made: Quantizes, bits: int, zero_point: int, side: str) -> None:
    reason = f"weight is one step too {side} in each row: a zero point off by one"
    _check_reason(model(), made, bits, Fault(zero_point=zero_point), reason)


def _check_reason(reference: Mlp, made: Quantizes, bits: int, fault: Fault, reason: str) -> None:
    report = traced(reference, made(reference, bits, fault))
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings] == ["second"]
    assert reason in report.findings[0].summary
    assert reason in report.findings[0].evidence


class WithoutTail(Packed):
    """Computes whole blocks of rows alone."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[-2]
        whole = rows if rows < 8 else rows // 8 * 8
        return torch.where(torch.arange(rows)[:, None] < whole, super().forward(x), torch.zeros(()))


class Truncating(Packed):
    """Casts its input to codes without rounding it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x / 0.1).to(torch.int8) * 0.1)


@pytest.mark.parametrize("kind", [WithoutTail, Truncating])
def test_a_packed_layer_that_computes_otherwise_on_what_it_receives_is_named(kind: type[Packed]) -> None:
    reference = model()
    candidate = packed(reference, 8)
    assert isinstance(reference.second, nn.Linear)
    candidate.second = kind(reference.second, 8, RIGHT)
    x = torch.randn(61, WIDTH, generator=torch.Generator().manual_seed(1))
    report = qtrace.trace(reference, candidate, x)
    assert (report.outcome, [finding.module for finding in report.findings]) == (Outcome.FAULT, ["second"])


class Twice(nn.Module):
    """Runs one MLP twice, or two copies of it."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.one = first
        self.two = second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x))
        return out


@MADE
def test_copies_of_a_shared_module_are_each_unrounded(made: Quantizes) -> None:
    shared = model()
    report = traced(Twice(shared, shared), Twice(made(shared, 8), made(shared, 8)))
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


class Fused(nn.Module):
    """Stores the codes of three layers in one table, which no module of the reference has."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat([layer.weight.detach() for layer in layers])
        step = weight.abs().amax(1, keepdim=True) / 127
        self.codes: Tensor
        self.step: Tensor
        self.register_buffer("codes", (weight / step).round().to(torch.int8))
        self.register_buffer("step", step)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes.float() * self.step)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.o: nn.Module = nn.Linear(WIDTH, WIDTH)
        self.mlp = Mlp()

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        out: Tensor = self.mlp(self.o(torch.softmax(q @ k.T / WIDTH**0.5, -1) @ v))
        return out


class FusedAttention(Attention):
    def __init__(self, other: Attention) -> None:
        super().__init__()
        self.qkv = Fused([other.q, other.k, other.v])
        del self.q, self.k, self.v
        assert isinstance(other.o, nn.Linear)
        self.o = Packed(other.o, 8, RIGHT)
        self.mlp = packed(other.mlp, 8)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.qkv(x).chunk(3, -1)
        return found


def test_codes_of_which_nothing_is_known_are_no_fault_beside_those_that_are_known() -> None:
    torch.manual_seed(0)
    blocks = [Attention().eval() for _ in range(3)]
    report = traced(nn.Sequential(*blocks), nn.Sequential(*map(FusedAttention, blocks)).eval())
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


class Classifier(Mlp):
    """Has a last layer of so few elements that what is wrong with it does not show in them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(super().forward(x)))
        return out


@pytest.mark.parametrize(("of_rounding", "outcome"), [(1.0, Outcome.DRIFT), (8.0, Outcome.FAULT)])
def test_a_small_weight_is_judged_by_the_size_of_its_difference(of_rounding: float, outcome: Outcome) -> None:
    torch.manual_seed(0)
    reference = Classifier().eval()
    candidate = weight_only(reference, 8)
    assert isinstance(candidate, Classifier)
    with torch.no_grad():
        weight = candidate.head.weight
        rounded = (weight / step_of(weight, 8)).round() * step_of(weight, 8)
        weight += of_rounding * (rounded - weight)
    report = traced(reference, candidate)
    assert report.outcome is outcome
    assert [finding.module for finding in report.findings] == (["head"] if outcome is Outcome.FAULT else [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_of_any_size_that_went_through_half_precision_are_no_fault(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    reference = Classifier().eval()
    with torch.no_grad():
        # The rounding of the bias is most of the error.
        reference.head.bias.mul_(50)
    report = traced(reference, copy.deepcopy(reference).to(dtype).float())
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


INPUTS = torch.rand(64, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5


def with_biases(made: Quantizes, *, of_rounding: float, random: float) -> tuple[Mlp, Mlp]:
    """Return a pair whose second biases lack so much of the mean that the rounding adds, or are off at random.

    Both are in units of the root mean square of what the rounding does to the layer's output.
    """
    reference, candidate = model(), made(model(), 4)
    seen: dict[str, Tensor] = {}
    reference.second.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out))
    with torch.no_grad():
        reference(INPUTS)
        error = candidate.second(seen["x"]) - seen["out"]
        noise = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(2))
        change = random * error.square().mean().sqrt() * noise - of_rounding * error.mean(0)
        second = candidate.second
        bias = second.added if isinstance(second, Packed) else second.bias
        assert isinstance(bias, Tensor)
        bias += change
    reference.second._forward_hooks.clear()
    return reference, candidate


@MADE
def test_a_bias_corrected_for_the_mean_of_its_rounding_is_no_fault(made: Quantizes) -> None:
    report = qtrace.trace(*with_biases(made, of_rounding=1.0, random=0.0), INPUTS)
    assert (report.outcome, report.findings) == (Outcome.DRIFT, ())


@MADE
def test_a_bias_that_is_off_by_more_than_its_rounding_is_named(made: Quantizes) -> None:
    report = qtrace.trace(*with_biases(made, of_rounding=0.0, random=3.0), INPUTS)
    assert (report.outcome, [finding.module for finding in report.findings]) == (Outcome.FAULT, ["second"])


@BITS
def test_a_lost_bias_of_packed_codes_is_named(bits: int) -> None:
    reference = model()
    candidate = packed(reference, bits, Fault(lost_bias=True))
    report = traced(reference, candidate)
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings] == ["second"]
    assert "adds no bias, the reference's is not zero" in report.findings[0].evidence
    assert "adds no bias" in report.findings[0].summary


def test_a_fault_in_the_code_is_named_below_the_rounding_of_the_weights() -> None:
    # GIVEN weights of four bits, and code that differs by less than they do
    reference = model()
    candidate = weight_only(reference, 4)
    kept = candidate.second

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = kept

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.wrapped(x) + 0.02
            return out

    candidate.second = Shifted()
    report = traced(reference, candidate)
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings] == ["second"]
    candidate.second = kept
    assert traced(reference, candidate).outcome is Outcome.DRIFT


def test_one_fault_in_three_layers_is_one_finding_with_members() -> None:
    reference = model()
    candidate = copy.deepcopy(reference)
    for name in NAMES:
        layer = reference.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(candidate, name, Packed(layer, 4, Fault(zero_point=1)))
    report = traced(reference, candidate)
    assert report.outcome is Outcome.FAULT
    (finding,) = report.findings
    assert {finding.module, *finding.members} == set(NAMES)
    assert "weight is one step too low in each row: a zero point off by one" in finding.evidence


class Losing(Packed):
    """Packed codes behind a function that loses some of the input where it is large."""

    def __init__(self, layer: nn.Linear, loses: Callable[[Tensor], Tensor]) -> None:
        super().__init__(layer, 8, RIGHT)
        self.loses = loses

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.loses(x))


def without_outliers(x: Tensor) -> Tensor:
    """Leave out the columns that another kernel was to multiply, as those of large values often are."""
    large = x.abs().amax(tuple(range(x.dim() - 1))) > 6
    return torch.where(large, 0.0, x)


def by_token(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
    return torch.round(x / scale) * scale


def with_outliers() -> Tensor:
    """Return inputs of which two columns are large, but with no value that stands out from its column."""
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1)).clamp(-2.5, 2.5)
    x[:, [3, 17]] = 12 * x[:, [3, 17]].sign()
    return x


def test_columns_of_the_input_that_are_not_used_are_named() -> None:
    reference, x = model(), with_outliers()
    assert isinstance(reference.first, nn.Linear)
    said = "does not use 2 of 32 columns of its input (3, 17)"
    assert input_fault(Losing(reference.first, without_outliers), reference.first, x) == said
    candidate = packed(reference, 8)
    candidate.first = Losing(reference.first, lambda x: by_token(without_outliers(x)))
    report = qtrace.trace(reference, candidate, x)
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings] == ["first"]
    assert said in report.findings[0].evidence


def test_an_input_that_is_cut_off_is_told_with_both_ends() -> None:
    reference, x = model(), with_outliers()
    assert isinstance(reference.first, nn.Linear)
    losing = Losing(reference.first, lambda x: by_token(x.clamp(-8, 8)))
    said = "its input is cut off at 8, where it reaches 12"
    assert input_fault(losing, reference.first, x) == said
    candidate = packed(reference, 8)
    candidate.first = losing
    report = qtrace.trace(reference, candidate, x)
    assert report.outcome is Outcome.FAULT
    assert [finding.module for finding in report.findings] == ["first"]
    assert said in report.findings[0].evidence


@pytest.mark.parametrize("passes", [torch.clone, by_token])
def test_an_input_that_is_only_rounded_is_no_fault(passes: Callable[[Tensor], Tensor]) -> None:
    reference, x = model(), with_outliers()
    assert isinstance(reference.first, nn.Linear)
    assert input_fault(Losing(reference.first, passes), reference.first, x) is None


def test_a_packed_layer_that_loses_some_of_its_input_without_rounding_it_is_named() -> None:
    reference, inputs = model(), with_outliers()
    candidate = packed(reference, 8)
    assert isinstance(reference.first, nn.Linear)
    candidate.first = Losing(reference.first, without_outliers)
    report = qtrace.trace(reference, candidate, inputs)
    assert report.outcome is Outcome.FAULT
    assert report.findings[0].module == "first"
    assert "does not use 2 of 32 columns of its input (3, 17)" in report.findings[0].evidence
