"""The weight and bias that a module computes with are read from its outputs, whatever it stores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtrace.diagnosis.quantization.effective_weight import float_values, linear_map, probed, table_of
from qtrace.diagnosis.quantization.straight_through import StraightThrough

WIDTH, OUT = 24, 40


class Packed(nn.Module):
    """Stores codes and steps in place of a weight; its forward may also round its input, to so many bits."""

    def __init__(self, layer: nn.Linear, *, bits_of_input: int | None = None) -> None:
        super().__init__()
        step = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.step: Tensor
        self.codes: Tensor
        self.register_buffer("step", step)
        self.register_buffer("codes", (layer.weight.detach() / step).round().to(torch.int8))
        self.added = None if layer.bias is None else layer.bias.detach().clone()
        self.bits_of_input = bits_of_input

    @property
    def effective(self) -> Tensor:
        return self.codes.float() * self.step

    def forward(self, x: Tensor) -> Tensor:
        if self.bits_of_input is not None:
            top = 2 ** (self.bits_of_input - 1) - 1
            step = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
            x = (x / step).round() * step
        return functional.linear(x, self.effective, self.added)


class Conv1D(nn.Module):
    """A linear layer with its weight as [in, out], as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, OUT))
        self.bias = nn.Parameter(torch.randn(OUT))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class With(nn.Module):
    """Computes what a function makes of its input."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        assert callable(self.function)
        found: Tensor = self.function(x)
        return found


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_weight_is_read_with_its_bias(bias: bool) -> None:
    layer = nn.Linear(WIDTH, OUT, bias=bias)
    packed = Packed(layer)
    found = probed(packed, layer)
    assert found is not None
    assert torch.allclose(found.weight.double(), packed.effective.double(), atol=1e-6)
    expected = layer.bias.detach() if bias else torch.zeros(OUT)
    assert torch.allclose(found.bias, expected, atol=1e-6)


class Observing(nn.Module):
    """Scales its input by what it has seen so far, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.largest: Tensor
        self.register_buffer("largest", torch.tensor(0.5))
        self.calls, self.seen, self.own = 0, [1], torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.own += 1
        self.extra = True
        self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
        out: Tensor = self.layer(x)
        return out


def test_a_module_that_keeps_state_holds_afterwards_what_it_held_before() -> None:
    module = Observing()
    map_ = probed(module, module.layer)
    assert map_ is not None
    assert (float(module.largest), module.calls, module.seen, module.own.tolist()) == (0.5, 0, [1], [0.0, 0.0])
    assert not hasattr(module, "extra")


def test_a_weight_wider_than_one_question_is_read() -> None:
    layer = nn.Linear(2100, 8)
    found = probed(layer, layer)
    assert found is not None
    assert torch.allclose(found.weight, layer.weight.detach(), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantizer_of_the_input_does_not_harm(bits: int) -> None:
    layer = nn.Linear(WIDTH, OUT)
    packed = Packed(layer, bits_of_input=bits)
    for within in (None, StraightThrough()):
        found = probed(packed, layer, within)
        assert found is not None
        assert torch.allclose(found.weight, packed.effective, atol=1e-5)
        assert torch.allclose(found.bias, layer.bias.detach(), atol=1e-5)


def test_a_scale_of_zero_for_zeros_does_not_harm() -> None:
    layer = nn.Linear(WIDTH, OUT)

    def normalised(x: Tensor) -> Tensor:
        size = x.abs().amax(-1, keepdim=True)
        return functional.linear(x / size, layer.weight) * size + layer.bias

    assert not torch.isfinite(normalised(torch.zeros(1, WIDTH))).any()
    found = probed(With(normalised), layer)
    assert found is not None
    assert torch.allclose(found.weight, layer.weight.detach(), atol=1e-5)
    assert torch.allclose(found.bias, layer.bias.detach(), atol=1e-5)


def test_what_is_no_linear_map_of_this_shape_has_none() -> None:
    layer = nn.Linear(WIDTH, WIDTH)

    def raises(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel")

    assert probed(With(lambda x: layer(x)), layer) is not None
    assert probed(With(lambda x: layer(x).relu()), layer) is None
    assert probed(With(lambda x: layer(x * x)), layer) is None
    assert probed(With(raises), layer) is None
    assert probed(With(lambda x: (layer(x), None)), layer) is None
    assert probed(With(lambda x: layer(x)[..., :-1]), layer) is None
    assert probed(layer, nn.LayerNorm(WIDTH)) is None


def test_hooks_of_the_module_do_not_run_and_its_weight_gets_no_gradient() -> None:
    layer = nn.Linear(WIDTH, OUT)
    layer.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    found = probed(layer, layer)
    assert found is not None
    assert not found.weight.requires_grad


def test_a_transposed_weight_is_read_as_that_of_a_linear_layer() -> None:
    layer = Conv1D()
    found, known = probed(layer, layer), linear_map(layer)
    assert found is not None
    assert known is not None
    for one in (found, known):
        assert torch.allclose(one.weight, layer.weight.detach().t(), atol=1e-6)
        assert torch.allclose(one.bias, layer.bias.detach(), atol=1e-6)
    assert probed(nn.Linear(WIDTH, OUT), layer) is not None


class Adapted(nn.Module):
    """A linear layer with an adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = WIDTH, OUT
        self.base = nn.Linear(WIDTH, OUT)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, OUT, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def test_a_layer_with_an_adapter_stands_for_their_sum() -> None:
    adapted = Adapted()
    found = linear_map(adapted)
    assert found is not None
    expected = adapted.base.weight.double() + adapted.up.weight.double() @ adapted.down.weight.double()
    assert torch.allclose(found.weight.double(), expected, atol=1e-6)
    assert torch.allclose(found.bias, adapted.base.bias.detach(), atol=1e-6)


def test_the_map_of_a_linear_layer_and_of_no_other_module() -> None:
    layer = nn.Linear(WIDTH, OUT, bias=False)
    found = linear_map(layer)
    assert found is not None
    assert torch.equal(found.weight, layer.weight.detach())
    assert torch.equal(found.bias, torch.zeros(OUT))
    assert linear_map(nn.LayerNorm(WIDTH)) is None
    assert linear_map(nn.ReLU()) is None
    assert linear_map(nn.Sequential(nn.Linear(WIDTH, OUT))) is None


def test_the_rows_of_an_embedding_are_read() -> None:
    table = nn.Embedding(12, WIDTH)
    other = With(lambda numbers: functional.embedding(numbers, table.weight * 2))
    found = table_of(other, table)
    assert found is not None
    assert torch.allclose(found, 2 * table.weight.detach())
    assert table_of(With(lambda numbers: numbers), table) is None
    assert table_of(nn.Embedding(12, WIDTH + 1), table) is None
    assert table_of(nn.Embedding(8, WIDTH), table) is None


def test_only_floating_values_that_are_there_are_values() -> None:
    plain = torch.randn(3)
    found = float_values(plain)
    assert found is not None
    assert torch.equal(found, plain)
    assert float_values(None) is None
    assert float_values(torch.arange(3)) is None
    assert float_values(torch.empty(3, device="meta")) is None
    assert float_values(nn.LazyLinear(3).weight) is None
