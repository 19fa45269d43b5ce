"""Readers of toolkits, each against a layer that holds what the toolkit's own holds and rounds as it does.

What is read must give the error that the layer makes: wrong levels, axes or scales would not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrace.diagnosis.quantization import expected_error, quant_facts, readings_of
from qtrace.report.records import QuantFacts

OUT, WIDTH, GROUP = 24, 64, 16


def linear(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(WIDTH, OUT).requires_grad_(False)


def taken() -> Tensor:
    return torch.randn(3, 10, WIDTH, generator=torch.Generator().manual_seed(1))


def holding(module: nn.Module, **held: Any) -> Any:
    """Return `module` with these buffers, children and attributes."""
    for name, value in held.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            module.register_buffer(name, value)
        elif isinstance(value, nn.Module):
            module.add_module(name, value)
        else:
            setattr(module, name, value)
    return module


def on_grid(values: Tensor, scale: Tensor, zero: Tensor | float = 0.0) -> Tensor:
    return ((values / scale + zero).round() - zero) * scale


def weight_by(scale: Tensor, zero: Tensor | float = 0.0) -> Tensor:
    """Return the layer's weight rounded in as many groups a row as `scale` has columns."""
    parts = linear().weight.reshape(OUT, scale.shape[1], -1)
    zero = zero[..., None] if isinstance(zero, Tensor) else zero
    return on_grid(parts, scale[..., None], zero).reshape(OUT, WIDTH)


def largest(groups: int = 1) -> Tensor:
    return linear().weight.reshape(OUT, groups, -1).abs().amax(2)


def run(weight: Tensor, x: Tensor | None = None) -> Tensor:
    return nn.functional.linear(taken() if x is None else x, weight, linear().bias)


def by_token(x: Tensor, level: float) -> Tensor:
    return on_grid(x, x.abs().amax(-1, keepdim=True) / level)


# One function a toolkit: the layer, and what it returns.


def bitsandbytes_8() -> tuple[nn.Module, Tensor]:
    module, most = linear(), largest()
    scale = most / 127
    module.weight = nn.Parameter((linear().weight / scale).round().to(torch.int8), requires_grad=False)
    # After the first call the scales are the layer's.
    held = holding(module, state=SimpleNamespace(SCB=most[:, 0]))
    held.weight.SCB = None
    return held, run(weight_by(scale), by_token(taken(), 127))


def bitsandbytes_4(nested: bool = False) -> tuple[nn.Module, Tensor]:
    module, most = linear(), largest(WIDTH // GROUP)
    codes = torch.linspace(-1, 1, 16).sign() * torch.linspace(-1, 1, 16).abs() ** 1.5
    places = (linear().weight.reshape(-1, GROUP, 1) / most.reshape(-1, 1, 1) - codes).abs().argmin(2).flatten()
    module.weight = nn.Parameter((places[::2] << 4 | places[1::2]).to(torch.uint8)[:, None], requires_grad=False)
    state = SimpleNamespace(
        absmax=most.flatten(), shape=torch.Size((OUT, WIDTH)), code=codes, blocksize=GROUP, quant_type="nf4"
    )
    if nested:
        table = most.flatten().sort().values
        outer = SimpleNamespace(code=table - 1, absmax=torch.ones(2), blocksize=64)
        inner = torch.searchsorted(table, most.flatten())
        state = SimpleNamespace(**{**vars(state), "absmax": inner, "state2": outer, "offset": 1.0, "nested": True})
    module.weight.__dict__["quant_state"] = state
    return module, run((codes[places].reshape(-1, GROUP) * most.reshape(-1, 1)).reshape(OUT, WIDTH))


def brevitas() -> tuple[nn.Module, Tensor]:
    class Proxy(nn.Module):
        def __init__(self, scale: Tensor, narrow: bool = False, on: bool = True) -> None:
            super().__init__()
            self.is_quant_enabled, self.is_signed, self.is_narrow_range = on, True, narrow
            self.scale, self.zero_point = (lambda: scale), (lambda: torch.tensor(0.0))
            self.bit_width = lambda: torch.tensor(8.0)

    scales = largest() / 127, taken().abs().max() / 127
    proxies = {"weight_quant": Proxy(scales[0], narrow=True), "input_quant": Proxy(scales[1])}
    module = holding(linear(), **proxies, output_quant=Proxy(torch.tensor(9.0), on=False))
    return module, run(weight_by(scales[0]), on_grid(taken(), scales[1]))


def compressed_tensors() -> tuple[nn.Module, Tensor]:
    scale = largest(WIDTH // GROUP) / 7
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None}
    scheme = SimpleNamespace(
        weights=SimpleNamespace(**weights, dynamic=False),
        input_activations=SimpleNamespace(**inputs, dynamic=True),
        output_activations=None,
    )
    module = holding(linear(), weight_scale=scale, quantization_scheme=scheme)
    return module, run(weight_by(scale), by_token(taken(), 127))


def neural_compressor() -> tuple[nn.Module, Tensor]:
    groups, pack = WIDTH // GROUP, 8
    parts = linear().weight.reshape(OUT, groups, GROUP)
    low, high = parts.amin(2), parts.amax(2)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    # Two rows of packed zero points less one, eight outputs in each element.
    shifts = 2 ** (4 * torch.arange(pack))
    packed = ((zero.T - 1).to(torch.int64).reshape(groups, -1, pack) % 16 * shifts).sum(2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    layer = nn.Module()
    held = {"scales": scale.T.contiguous(), "qweight": torch.zeros(8, OUT, dtype=torch.int32), "qzeros": packed}
    known = {"bits": 4, "group_size": GROUP, "in_features": WIDTH, "out_features": OUT, "n_pack": pack, "dtype": "int"}
    return holding(layer, **held, **known, use_optimum_format=True), run(weight_by(scale, zero))


def quark() -> tuple[nn.Module, Tensor]:
    class Fake(nn.Module):
        def __init__(self, scale: Tensor, scheme: str, axis: int | None) -> None:
            super().__init__()
            holding(self, scale=scale, zero_point=torch.zeros(scale.shape, dtype=torch.int32))
            self.quant_spec = SimpleNamespace(symmetric=True)
            self.dtype, self.quant_min, self.quant_max = SimpleNamespace(value="int8"), -128, 127
            self.qscheme_str_name, self.ch_axis, self.group_size = scheme, axis, None
            self.fake_quant_enabled, self.is_dynamic, self._num_bits = True, False, 8
            # It has an observer, as a wrapper has what it wraps.
            self.observer = holding(nn.Module(), min_val=torch.tensor(-1.0), max_val=torch.tensor(1.0))

    scales = largest()[:, 0] / 127, taken().abs().max() / 127
    fakes = {
        "_weight_quantizer": Fake(scales[0], "per_channel", 0),
        "_input_quantizer": Fake(scales[1], "per_tensor", None),
    }
    return holding(linear(), **fakes), run(weight_by(scales[0][:, None]), on_grid(taken(), scales[1]))


def aimet() -> tuple[nn.Module, Tensor]:
    class Dequantize(nn.Module):
        def __init__(self, low: Tensor, high: Tensor, qmin: int, qmax: int, symmetric: bool) -> None:
            super().__init__()
            self.qmin, self.qmax, self.symmetric = qmin, qmax, symmetric
            scale = (high - low) / (qmax - qmin)
            self.get_scale, self.get_offset = (lambda: scale), (lambda: (low / scale).round() - qmin)

    most, y = largest(), linear()(taken())
    step = (y.max() - y.min()) / 255
    grid = step, -(y.min() / step).round()
    weights = Dequantize(-most * 128 / 127, most, -128, 127, True)
    outputs = Dequantize(y.min(), y.max(), 0, 255, False)
    lists = {"input_quantizers": nn.ModuleList(), "output_quantizers": nn.ModuleList([outputs])}
    module = holding(linear(), param_quantizers=nn.ModuleDict({"weight": weights}), **lists)
    return module, on_grid(run(weight_by(most / 127)), *grid)


def modelopt_smoothed() -> tuple[nn.Module, Tensor]:
    class TensorQuantizer(nn.Module):
        def __init__(self, amax: Tensor, axis: int | None, scale: Tensor | None = None) -> None:
            super().__init__()
            self._num_bits, self._axis, self._disabled, self.pre_quant_scale = 8, axis, False, scale
            self.register_buffer("_amax", amax)

    gain = torch.logspace(-1, 1, WIDTH)
    module = linear()
    module.weight /= gain
    x, most = taken() * gain, module.weight.abs().amax(1, keepdim=True)
    after = run(on_grid(module.weight, most / 127), on_grid(x, x.abs().max() / 127))
    inputs = TensorQuantizer(x.abs().max(), None, gain)
    return holding(module, weight_quantizer=TensorQuantizer(most, 0), input_quantizer=inputs), after


def quanto_unfrozen() -> tuple[nn.Module, Tensor]:
    scale = largest() / 127
    rounded = weight_by(scale)
    rounded._qtype = SimpleNamespace(is_floating_point=False, bits=8, dtype=torch.int8)  # type: ignore[attr-defined]
    rounded._scale, rounded._axis = scale, 0  # type: ignore[attr-defined]
    module = holding(linear(), weight_qtype="qint8", activation_qtype=SimpleNamespace(dtype=torch.int8))
    module.__dict__["qweight"] = rounded
    hook = module.register_forward_hook(lambda *_: None)
    hook.remove()
    # What calibration took off is still in the list.
    return holding(module, output_scale=torch.tensor(9.0), _quantize_hooks={"output": hook}), run(rounded)


def torchao_input() -> tuple[nn.Module, Tensor]:
    class PerRow:
        pass

    module, scale = linear(), largest() / 127
    told = SimpleNamespace(granularity=PerRow(), mapping_type=SimpleNamespace(name="SYMMETRIC"))
    held = {"qdata": torch.zeros(OUT, WIDTH, dtype=torch.int8), "block_size": (1, WIDTH), "act_quant_kwargs": told}
    module.weight.copy_(weight_by(scale))
    for name, value in {**held, "scale": scale}.items():
        setattr(module.weight, name, value)
    return module, run(weight_by(scale), by_token(taken(), 127))


LAYERS: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor]], str]] = {
    "bitsandbytes 8": (bitsandbytes_8, "weight int8 per channel 0, input int8 dynamic"),
    "bitsandbytes 4": (bitsandbytes_4, "weight nf4 per group of 16"),
    "bitsandbytes 4, nested": (lambda: bitsandbytes_4(nested=True), "weight nf4 per group of 16"),
    "brevitas": (brevitas, "input int8 per tensor, weight int8 per channel 0"),
    "compressed-tensors": (compressed_tensors, "weight int4 per group of 16, input int8 dynamic"),
    "neural-compressor": (neural_compressor, "weight uint4 per group of 16"),
    "quark": (quark, "weight int8 per channel 0, input int8 per tensor"),
    "aimet": (aimet, "weight int8 per channel 0, output uint8 per tensor"),
    "modelopt": (modelopt_smoothed, "weight int8 per channel 0, input int8 per tensor"),
    "optimum-quanto": (quanto_unfrozen, "weight int8 per channel 0"),
    "torchao": (torchao_input, "weight int8 per channel 0, input int8 dynamic"),
}


def told(facts: QuantFacts) -> str:
    """Return dtypes and schemes in a few words."""
    words = []
    for quantizer in facts.quantizers:
        where = "" if quantizer.axis is None else f" {quantizer.axis}"
        where += "" if quantizer.group is None else f" of {quantizer.group}"
        words.append(f"{quantizer.of} {quantizer.dtype} {quantizer.scheme}{where}")
    return ", ".join(words)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_read_gives_the_error_that_the_layer_makes(name: str) -> None:
    build, scheme = LAYERS[name]
    module, after = build()
    reference = linear()
    values = {"input": taken(), "output": reference(taken())}
    facts = quant_facts(reference, [module], values=values)
    assert facts is not None
    assert facts.toolkit == name.partition(" ")[0]
    assert told(facts) == scheme
    assert not list(facts.problems())
    made = (after - values["output"]).square().mean().sqrt().item()
    assert expected_error(readings_of([module]), reference, values) == pytest.approx(made, rel=2e-3)


class Layer(nn.Module):
    """Two linear layers, which nncf names without the list around them and the number."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = linear(1), nn.Linear(OUT, WIDTH)


class Hooked(nn.Module):
    """Two layers in a list, with nncf's hooks at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.layers[1].q = linear(0)


def nncf_quantizer(scale: Tensor) -> nn.Module:
    fake = nn.Module()
    fake._scale_param_storage = nn.Parameter(scale)
    levels = {"_level_low": torch.tensor([-127]), "_level_high": torch.tensor([127]), "enabled": torch.tensor([1])}
    return holding(fake, **levels)  # type: ignore[no-any-return]


def hooks(**places: dict[str, nn.Module]) -> nn.Module:
    held = {name: nn.ModuleDict() for name in ("pre_hooks", "post_hooks")}
    for name, quantizers in places.items():
        for key, quantizer in quantizers.items():
            held[name].add_module(key, nn.ModuleDict({"0": quantizer}))
    return holding(nn.Module(), **held)  # type: ignore[no-any-return]


def test_nncf_layers_of_one_name_are_told_apart_by_their_calls() -> None:
    model, scale = Hooked(), largest() / 127
    other = linear(1).weight.abs().amax(1, keepdim=True) * 3
    pre = {"q/linear/0__1": nncf_quantizer(other), "q/linear/1__1": nncf_quantizer(largest())}
    model.add_module("__nncf_hooks", hooks(pre_hooks=pre))
    known = frozenset(model.modules())
    facts = quant_facts(linear(), [model.layers[1].q], known)  # type: ignore[list-item]
    assert facts is not None
    assert facts.toolkit == "nncf"
    assert told(facts) == "weight int8 per channel 0"
    assert facts.quantizers[0].scale == pytest.approx((scale.min().item(), scale.max().item()))
    first = quant_facts(linear(1), [model.layers[0].q], known)  # type: ignore[list-item]
    assert first is not None
    assert first.quantizers[0].scale == pytest.approx(((other / 127).min().item(), (other / 127).max().item()))
    assert quant_facts(nn.Linear(OUT, WIDTH), [model.layers[0].out], known) is None  # type: ignore[list-item]


def test_nncf_calls_that_no_count_of_layers_explains_are_nobodys() -> None:
    model = Hooked()
    pre = {f"q/linear/{call}__1": nncf_quantizer(largest()) for call in range(3)}
    model.add_module("__nncf_hooks", hooks(pre_hooks=pre))
    assert quant_facts(linear(), [model.layers[1].q], frozenset(model.modules())) is None  # type: ignore[list-item]


def test_nncf_compressed_weight_and_a_scale_below_zero() -> None:
    class Decompress(nn.Module):
        def __init__(self, scale: Tensor) -> None:
            super().__init__()
            self.compressed_weight_shape = (OUT, WIDTH // GROUP, GROUP)
            self.register_buffer("_scale", scale[..., None])

        def forward(self, packed: Tensor) -> Tensor:
            return (packed.reshape(self.compressed_weight_shape) * self.get_buffer("_scale")).reshape(OUT, WIDTH)

    model = nn.Module()
    parts = linear().weight.reshape(OUT, -1, GROUP)
    further = torch.where(parts.amax(2) > -parts.amin(2), parts.amax(2), parts.amin(2))
    scale = further / -8
    levels = (parts / scale[..., None]).round().clamp(-8, 7)
    layer = linear()
    layer.weight = nn.Parameter(levels.reshape(OUT, WIDTH), requires_grad=False)
    model.add_module("q", layer)
    model.add_module("__nncf_hooks", hooks(post_hooks={"q:weight__0": Decompress(scale)}))
    facts = quant_facts(linear(), [layer], frozenset(model.modules()))
    assert facts is not None
    assert told(facts) == "weight int4 per group of 16"
    assert not list(facts.problems())
    (quantizer,) = facts.quantizers
    assert quantizer.range == pytest.approx((parts.min().item(), parts.max().item()), rel=1e-3)
    values = {"input": taken()}
    made = (run((levels * scale[..., None]).reshape(OUT, WIDTH)) - run(linear().weight)).square().mean().sqrt().item()
    assert expected_error(readings_of([layer], frozenset(model.modules())), linear(), values) == pytest.approx(
        made, rel=0.2
    )


def test_a_quantizer_is_not_read_twice() -> None:
    module, _ = quark()
    facts = quant_facts(linear(), [nn.Sequential(module)], values={"output": torch.full((2, OUT), 100.0)})
    assert facts is not None
    assert [quantizer.of for quantizer in facts.quantizers] == ["weight", "input"]


def test_row_of_zeros_may_have_the_scale_zero() -> None:
    reference = linear()
    reference.weight[3] = 0
    scale = reference.weight.abs().amax(1) / 127
    module = copy.deepcopy(reference)
    module = holding(
        module, weight_scale=scale, weight_zero_point=torch.zeros(OUT), axis=0, quant_min=-127, quant_max=127
    )
    facts = quant_facts(reference, [module])
    assert facts is not None
    assert not list(facts.problems())
    assert expected_error(readings_of([module]), reference, {"input": taken()}) is not None
    scale[4] = 0
    facts = quant_facts(reference, [holding(module, weight_scale=scale)])
    assert facts is not None
    assert [str(problem) for _, problem in facts.problems()] == [
        "uncalibrated: 1 of its 24 scales is 0 or below; take the scales from the weight again"
    ]


def test_output_before_a_fused_relu_is_not_clipped_by_it() -> None:
    class ConvertedReLU(nn.Module):
        """As torch.ao's fused ones: the reference's module may be the one before the ReLU."""

    ConvertedReLU.__module__ = "torch.ao.nn.intrinsic.quantized.modules"
    module = holding(ConvertedReLU(), scale=1 / 127, zero_point=0, dtype=torch.quint8)
    facts = quant_facts(linear(), [module], values={"output": torch.linspace(-2, 2, 100)})
    assert facts is not None
    assert facts.toolkit == "torch.ao"
    assert facts.quantizers[0].saturated == 0
    assert not list(facts.problems())
    assert expected_error(readings_of([module]), linear(), {"output": torch.linspace(-2, 2, 100)}) is None
