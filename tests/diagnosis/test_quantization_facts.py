"""What is said of a quantizer: from stand-in readings with known ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from qtrace.diagnosis.quantization import quant_facts, with_interval
from qtrace.report.records import QuantFacts, Quantizer, QuantProblemKind


class Scaled(nn.Module):
    """A linear layer with a weight's scale and zero point under the usual names."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, zero: int = 0, axis: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.full_like(scale, zero, dtype=torch.int32))
        self.quant_min, self.quant_max = -128, 127
        if axis is not None:
            self.axis = axis


class Rounded(nn.Module):
    """A module that rounds its output."""

    def __init__(self, scale: float, zero_point: int = 0) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point
        self.dtype = torch.qint8


def weight() -> torch.Tensor:
    """Return a square weight whose rows have one size and whose columns have others."""
    values = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values[:, 0] = 1
    return values * torch.logspace(-1, 1, 8)


def facts_of(module: nn.Module, values: dict[str, torch.Tensor] | None = None) -> Quantizer:
    found = quant_facts(nn.Linear(8, 8), [module], values=values)
    assert found is not None
    (quantizer,) = found.quantizers
    return quantizer


def kinds(quantizer: Quantizer) -> list[QuantProblemKind]:
    return [problem.kind for problem in quantizer.problems]


def test_scheme_range_and_rounding_of_a_weight_per_channel() -> None:
    values = weight()
    scale = values.abs().amax(1, keepdim=True) / 127
    found = facts_of(Scaled(values, scale))
    assert (found.of, found.dtype, found.scheme, found.axis, found.scales) == ("weight", "int8", "per channel", 0, 8)
    assert found.symmetric is True
    assert found.scale == pytest.approx((scale.min().item(), scale.max().item()))
    assert found.zero_point == (0.0, 0.0)
    assert found.range == pytest.approx((-128 * scale.max().item(), 127 * scale.max().item()))
    assert found.rounding == pytest.approx(scale.max().item() / math.sqrt(12))
    assert found.rounding_peir == pytest.approx(
        scale.max().item() / math.sqrt(12) / (values.max() - values.min()).item()
    )
    assert found.saturated == 0
    assert not found.problems


def test_expected_rounding_is_that_of_rounding() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = facts_of(Rounded(1 / 127), {"output": values})
    rounded = torch.fake_quantize_per_tensor_affine(values, 1 / 127, 0, -128, 127)
    assert found.rounding == pytest.approx((rounded - values).square().mean().sqrt().item(), rel=0.05)


def test_scales_of_another_axis_are_named() -> None:
    values = weight()
    found = facts_of(Scaled(values, values.abs().amax(0) / 127, axis=0))
    assert kinds(found) == [QuantProblemKind.WRONG_AXIS]
    assert "those of axis 1, and are used along axis 0" in found.problems[0].said
    right = facts_of(Scaled(values, values.abs().amax(1) / 127, axis=0))
    assert not right.problems


@pytest.mark.parametrize(
    ("shrunk", "share"),
    [(1.0, 0.0), (0.5, 0.5), (0.25, 0.75)],
)
def test_share_of_saturated_values(shrunk: float, share: float) -> None:
    values = torch.linspace(-1, 1, 2001)
    found = facts_of(Rounded(shrunk / 127), {"output": values})
    assert found.saturated == pytest.approx(share, abs=0.01)
    assert kinds(found) == ([QuantProblemKind.CLIPPED] if share else [])


def test_one_outlier_that_is_cut_off_is_clipping_too() -> None:
    values = torch.linspace(-1, 1, 2001)
    values[0] = -3
    found = facts_of(Rounded(1 / 127), {"output": values})
    assert found.saturated == pytest.approx(1 / 2001)
    assert kinds(found) == [QuantProblemKind.CLIPPED]


def test_values_that_are_not_finite_do_not_pass_for_saturated_ones_unseen() -> None:
    values = torch.linspace(-1, 1, 2001)
    values[7] = math.nan
    found = facts_of(Rounded(1 / 127), {"output": values})
    assert found.saturated == pytest.approx(1 / 2001)
    assert kinds(found) == [QuantProblemKind.CLIPPED]


def test_range_far_wider_than_the_values() -> None:
    values = torch.linspace(-1, 1, 2001)
    assert kinds(facts_of(Rounded(20 / 127), {"output": values})) == [QuantProblemKind.DEAD_RANGE]
    # Twice as wide is what a symmetric range is for values of one sign.
    assert not facts_of(Rounded(1 / 127), {"output": values.abs()}).problems


def test_range_that_a_few_outliers_stretch() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    assert not facts_of(Rounded(values.abs().max().item() / 127), {"output": values}).problems
    values[3] = 30
    assert not facts_of(Rounded(30 / 127), {"output": values}).problems
    values[3] = 300
    found = facts_of(Rounded(300 / 127), {"output": values})
    assert kinds(found) == [QuantProblemKind.DEAD_RANGE]
    step = 300 / 127 / values.abs().mean().item()
    assert f"one step is {step:.3g} times the mean size" in found.problems[0].said
    assert "smooth the outliers" in found.problems[0].remedy
    # Probabilities have a long tail by nature.
    assert not facts_of(Rounded(300 / 127), {"output": values.abs()}).problems


def test_constant_weight_needs_no_narrow_range() -> None:
    assert not facts_of(Scaled(torch.ones(8, 8), torch.tensor(0.5))).problems


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (1.0, "scale is 1"),
        (0.0, "0 or below"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (-1.0, "0 or below"),
    ],
)
def test_scales_that_were_never_set(scale: float, said: str) -> None:
    found = facts_of(Rounded(scale), {"output": torch.linspace(-1, 1, 9)})
    assert kinds(found)[0] is QuantProblemKind.UNCALIBRATED
    assert said in found.problems[0].said
    assert "calibrate" in found.problems[0].remedy


def test_what_a_known_child_holds_is_not_its_parents() -> None:
    inner = Rounded(0.5)
    outer = nn.Sequential(inner)
    assert quant_facts(nn.Identity(), [outer], frozenset({inner})) is None
    assert quant_facts(nn.Identity(), [outer]) is not None


def test_scale_without_zero_point_is_no_quantizer() -> None:
    module = nn.Linear(4, 4)
    module.scale = 0.5  # type: ignore[assignment]
    assert quant_facts(nn.Linear(4, 4), [module]) is None


def test_attributes_of_another_form_are_no_error() -> None:
    module = nn.Linear(4, 4)
    module.register_buffer("scale", torch.ones(3, 3))
    module.zero_point = "none"  # type: ignore[assignment]
    found = quant_facts(nn.Linear(4, 4), [module], values={"output": torch.ones(2, 4)})
    assert found is None or found.quantizers[0].saturated is None


def test_rounding_as_a_share_of_the_interval() -> None:
    facts = QuantFacts("t", (Quantizer(name="o", of="output", dtype="int8", scheme="per tensor", rounding=0.5),))
    assert with_interval(facts, 10).quantizers[0].rounding_peir == 0.05
    assert with_interval(facts, math.nan) == facts
    assert with_interval(facts, None) == facts


# Stand-ins with the attributes of the toolkits' own objects.


@dataclass
class QType:
    """quanto's qtype."""

    name: str
    is_floating_point: bool
    bits: int
    dtype: torch.dtype


class TensorQuantizer(nn.Module):
    """modelopt's quantizer."""

    def __init__(self, amax: torch.Tensor | None, bits: Any = 8, axis: int | None = None, off: bool = False) -> None:
        super().__init__()
        self._num_bits, self._axis, self._disabled = bits, axis, off
        if amax is not None:
            self.register_buffer("_amax", amax)


@dataclass
class Stored:
    """What torchao and quanto keep of a weight: attributes are set on a parameter."""

    attributes: dict[str, Any] = field(default_factory=dict)

    def on(self, module: nn.Linear) -> nn.Linear:
        for name, value in self.attributes.items():
            setattr(module.weight, name, value)
        return module


def linear() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(8, 8)


def test_modelopt_reads_amax_and_passes_by_what_is_off() -> None:
    module = linear()
    module.add_module("weight_quantizer", TensorQuantizer(module.weight.detach().abs().amax(1, keepdim=True), axis=0))
    module.add_module("input_quantizer", TensorQuantizer(torch.tensor(2.0), bits=(4, 3)))
    module.add_module("output_quantizer", TensorQuantizer(None, off=True))
    found = quant_facts(linear(), [module])
    assert found is not None
    assert found.toolkit == "modelopt"
    weights, inputs = found.quantizers
    assert (weights.dtype, weights.axis, weights.scales, weights.saturated) == ("int8", 0, 8, 0)
    assert (inputs.dtype, inputs.of, inputs.rounding) == ("float8_e4m3fn", "input", None)
    assert inputs.range == pytest.approx((-2, 2))


def test_modelopt_without_amax_was_not_calibrated() -> None:
    module = linear()
    module.add_module("input_quantizer", TensorQuantizer(None))
    found = quant_facts(linear(), [module])
    assert found is not None
    assert kinds(found.quantizers[0]) == [QuantProblemKind.UNCALIBRATED]


def test_torchao_groups_and_dynamic_inputs() -> None:
    module = linear()
    scale = module.weight.detach().reshape(8, 2, 4).abs().amax(2) / 7
    held = {"qdata": torch.zeros(8, 8, dtype=torch.int8), "scale": scale, "block_size": (1, 4), "target_dtype": "int4"}
    found = quant_facts(linear(), [Stored({**held, "act_quant_kwargs": object()}).on(module)])
    assert found is not None
    assert found.toolkit == "torchao"
    weights, inputs = found.quantizers
    assert (weights.dtype, weights.scheme, weights.group, weights.scales) == ("int4", "per group", 4, 16)
    assert weights.saturated == 0
    assert (inputs.of, inputs.scheme, inputs.scale) == ("input", "dynamic", None)


def test_quanto_shift_is_a_zero_point() -> None:
    module = linear()
    values = module.weight.detach()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    kind = QType("qint4", False, 4, torch.int8)
    held = {"_qtype": kind, "_scale": (high - low) / 15, "_shift": -low, "_axis": 0}
    found = quant_facts(linear(), [Stored(held).on(module)])
    assert found is not None
    assert found.toolkit == "optimum-quanto"
    (weights,) = found.quantizers
    assert (weights.dtype, weights.symmetric, weights.axis, weights.saturated) == ("int4", False, 0, 0)
    assert weights.range == pytest.approx((low.min().item(), high.max().item()), abs=0.05)


def test_stored_weight_in_another_basis_is_not_held_against_the_reference() -> None:
    module = linear()
    module.weight.data *= 100
    scale = module.weight.detach().abs().amax(1, keepdim=True) / 127
    held = {"qdata": torch.zeros(8, 8, dtype=torch.int8), "scale": scale, "block_size": (1, 8)}
    found = quant_facts(linear(), [Stored(held).on(module)])
    assert found is not None
    assert found.quantizers[0].saturated is None
    assert not found.quantizers[0].problems


def test_torch_ao_static_and_fake_quantized() -> None:
    from torch.ao.quantization import default_fake_quant

    fake = default_fake_quant()
    module = linear()
    module.add_module("activation_post_process", fake)
    found = quant_facts(linear(), [module])
    assert found is not None
    assert found.toolkit == "torch.ao"
    assert kinds(found.quantizers[0]) == [QuantProblemKind.UNCALIBRATED]
    fake(torch.linspace(-1, 1, 100))
    found = quant_facts(linear(), [module], values={"output": torch.linspace(-1, 1, 100)})
    assert found is not None
    assert found.quantizers[0].dtype == "uint8"
    assert not found.quantizers[0].problems
