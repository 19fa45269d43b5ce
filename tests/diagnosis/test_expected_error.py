"""The error that rounding is expected to make, against a simulation in float64 and against the formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qtrace.diagnosis.quantization.expected_error import expected_error, rounded
from qtrace.toolkits.quantizer import Reading, levels_of

ROWS, WIDTH, OUT = 200, 64, 48


def layer(bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(WIDTH, OUT, bias=bias).requires_grad_(False)


def taken() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def weight_reading(module: nn.Linear, dtype: str = "int8", by: float = 1.0) -> Reading:
    levels = levels_of(dtype)
    assert levels is not None
    scale = module.weight.abs().amax(1, keepdim=True) / levels[1] * by
    return Reading(name="weight", of="weight", dtype=dtype, scale=scale, levels=levels, symmetric=True, axis=0)


def tensor_reading(of: str, values: Tensor, by: float = 1.0) -> Reading:
    scale = values.abs().max() / 127 * by
    return Reading(name=of, of=of, dtype="int8", scale=scale, levels=(-128.0, 127.0), symmetric=True)


def on_levels(values: Tensor, reading: Reading) -> Tensor:
    found = rounded(values, reading)
    assert found is not None
    return found


def to_grid(values: Tensor, scale: Tensor) -> Tensor:
    return (values.double() / scale.double()).round().clamp(-128, 127) * scale.double()


def simulated(module: nn.Linear, x: Tensor, readings: list[Reading]) -> float:
    """Return the RMS of what a layer that rounds returns, less what the layer returns, in float64."""
    scales = {reading.of: reading.scale for reading in readings}
    weight, inputs = module.weight.double(), x.double()
    exact = inputs @ weight.T + module.bias.double()
    if (scale := scales.get("weight")) is not None:
        weight = to_grid(weight, scale)
    if (scale := scales.get("input")) is not None:
        inputs = to_grid(inputs, scale)
    after = inputs @ weight.T + module.bias.double()
    if (scale := scales.get("output")) is not None:
        after = to_grid(after, scale)
    return (after - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("of", [("weight",), ("input",), ("output",), ("weight", "input", "output")])
def test_it_is_that_of_a_simulation_and_of_the_formula(of: tuple[str, ...]) -> None:
    module, x = layer(), taken()
    y = module(x)
    known = {
        "weight": weight_reading(module),
        "input": tensor_reading("input", x),
        "output": tensor_reading("output", y),
    }
    readings = [known[name] for name in of]
    found = expected_error(readings, module, {"input": x, "output": y})
    assert found == pytest.approx(simulated(module, x, readings), rel=1e-3)
    step = {name: reading.scale.square().mean() / 12 for name, reading in known.items() if reading.scale is not None}
    squares = {
        "weight": x.square().sum(1).mean() * step["weight"],
        "input": module.weight.square().sum(1).mean() * step["input"],
        "output": step["output"],
    }
    assert found == pytest.approx(math.sqrt(sum(squares[name].item() for name in of)), rel=0.05)


def test_what_saturates_or_is_far_too_wide_is_not_expected() -> None:
    module, x = layer(), taken()
    values = {"input": x, "output": module(x)}
    right = expected_error([weight_reading(module)], module, values)
    assert right is not None
    clipped = expected_error([weight_reading(module, by=0.5)], module, values)
    assert clipped == pytest.approx(right / 2, rel=0.05)
    # A little wide is what calibration on other inputs gives; an uncalibrated scale of 1 is at fault.
    assert expected_error([weight_reading(module, by=4)], module, values) == pytest.approx(4 * right, rel=0.1)
    assert expected_error([weight_reading(module, by=1000)], module, values) == pytest.approx(right, rel=0.05)


def test_scale_that_is_chosen_at_each_call_is_that_of_each_token() -> None:
    module = layer()
    x = taken() * torch.logspace(-2, 1, ROWS)[:, None]
    dynamic = Reading(name="input", of="input", dtype="int8", scale=None, levels=(-128.0, 127.0))
    by_token = expected_error([replace(dynamic, by_token=True)], module, {"input": x})
    by_tensor = expected_error([dynamic], module, {"input": x})
    scale = x.abs().amax(1, keepdim=True) / 127
    error = (to_grid(x, scale) - x.double()) @ module.weight.double().T
    assert by_token == pytest.approx(error.square().mean().sqrt().item(), rel=1e-3)
    assert by_token is not None
    assert by_tensor is not None
    assert by_tensor > 2 * by_token


def test_groups_zero_points_and_floats() -> None:
    weight = layer().weight.detach()
    parts = weight.reshape(OUT, 4, 16)
    low, high = parts.amin(2), parts.amax(2)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    grouped = Reading(name="w", of="weight", dtype="uint4", scale=scale, zero_point=zero, levels=(0.0, 15.0), group=16)
    by_hand = ((parts / scale[..., None] + zero[..., None]).round() - zero[..., None]) * scale[..., None]
    assert torch.allclose(on_levels(weight, grouped), by_hand.reshape(OUT, WIDTH), atol=1e-7)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        name = str(dtype).removeprefix("torch.")
        levels = levels_of(name)
        assert levels is not None
        scale = weight.abs().max() / levels[1]
        reading = Reading(name="w", of="weight", dtype=name, scale=scale, levels=levels)
        assert torch.allclose(on_levels(weight, reading), (weight / scale).to(dtype).float() * scale, rtol=1e-6, atol=0)


def test_levels_that_are_not_equally_far_apart() -> None:
    codes = torch.tensor([-1.0, -0.5, -0.1, 0.0, 0.2, 1.0])
    reading = Reading(
        name="w", of="weight", dtype="nf4", scale=torch.tensor(2.0), levels=(-1.0, 1.0), codes=codes, symmetric=True
    )
    values = torch.tensor([[-1.9, -0.7, -0.5], [0.15, 0.3, 1.3]])
    assert torch.equal(on_levels(values, reading), torch.tensor([[-2.0, -1.0, -0.2], [0.0, 0.4, 2.0]]))


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(3, 8, 3), nn.Embedding(50, 8), nn.LayerNorm(6)],
    ids=lambda module: type(module).__name__,
)
def test_any_single_function_of_torch(module: nn.Module) -> None:
    module.requires_grad_(False)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    reading = Reading(name="w", of="weight", dtype="int4", scale=weight.abs().max() / 7, levels=(-8.0, 7.0))
    called = torch.arange(50) if isinstance(module, nn.Embedding) else x
    exact = module(called)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = module.register_forward_hook(count)
    found = expected_error([reading], module, {"input": x})
    handle.remove()
    assert calls == 0
    before = weight.clone()
    weight.copy_(on_levels(weight, reading))
    assert found == pytest.approx((module(called) - exact).square().mean().sqrt().item(), rel=1e-4)
    assert not torch.equal(weight, before)


def test_what_rounds_its_output_alone_may_be_any_module() -> None:
    y = taken()
    reading = tensor_reading("output", y)
    found = expected_error([reading], nn.Sequential(layer()), {"output": y})
    assert reading.scale is not None
    assert found == pytest.approx(reading.scale.item() / math.sqrt(12), rel=0.05)


def with_scale(reading: Reading, value: Tensor | float, times: float = 1) -> Reading:
    scale = value if isinstance(value, Tensor) else torch.full((OUT, 1), value)
    return replace(reading, scale=scale * times)


def test_none_where_it_is_not_known() -> None:
    module, x = layer(), taken()
    values = {"input": x, "output": module(x)}
    own = weight_reading(module)
    assert expected_error([], module, values) is None
    assert expected_error([own], module, {}) is None
    assert expected_error([own], nn.Sequential(module), values) is None
    inside = replace(own, name="mul", of="inside")
    assert expected_error([own, inside], module, values) is None
    for value in (0.0, math.nan, math.inf, -1.0):
        assert expected_error([with_scale(own, value)], module, values) is None
    for scale in (torch.empty(0), torch.ones(7)):
        assert expected_error([with_scale(own, scale)], module, values) is None
    folded = replace(weight_reading(module, by=50), weight=module.weight * 50)
    assert expected_error([folded], module, values) is None
    assert expected_error([own], module, {"input": x * math.nan}) is None
