"""Traces on disk: what goes in comes out, under the same names, each tensor once."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from qtrace.engine.events import End, Enter, Exit
from qtrace.engine.pair import spec_of
from qtrace.errors import UsageError
from qtrace.numerics import plain
from qtrace.traces.capture import capture
from qtrace.traces.excerpt import LENGTH, sketch
from qtrace.traces.literals import decode, encode
from qtrace.traces.reader import Trace
from qtrace.traces.skeleton import skeleton
from qtrace.traces.stored_side import StoredSide
from qtrace.traces.writer import Form
from qtrace.tree import leaves
from tests.helpers.models import Cache, Chain, Pair, Returns, Stack, hooks_of

X = torch.arange(8.0).reshape(2, 4) / 3
IDS = {"ids": torch.arange(12).reshape(1, 12)}


def events(trace: Trace, sample: int = 0) -> list[Any]:
    side = StoredSide(trace, sample, {module.path: module.path for module in trace.manifest.modules})
    found: list[Any] = [side.start(lambda: None)]
    while not isinstance(found[-1], End):
        found.append(side.step())
    return found


def output(trace: Trace, module: str = "") -> Any:
    return next(e.value for e in events(trace) if isinstance(e, Exit) and e.call.path == module)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors hold the same bits in the same form."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(next(raw), next(raw))


KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "float64": lambda y: y.double(),
    "bfloat16": lambda y: y.bfloat16(),
    "float16 with infinity": lambda y: y.half() * 1e9,
    "float8": lambda y: y.to(torch.float8_e4m3fn),
    "float8 of the other kind": lambda y: y.to(torch.float8_e5m2),
    "bool": lambda y: y > 0,
    "int8": lambda y: (y * 10).to(torch.int8),
    "uint16": lambda y: (y.abs() * 1000).to(torch.uint16),
    "int64": lambda y: torch.tensor([2**62, -1]),
    "complex": lambda y: torch.complex(y, -y),
    "empty": lambda y: y[:0],
    "no dimension": lambda y: y.sum(),
    "transposed": lambda y: y.t(),
    "a slice": lambda y: y[:, 1::2],
    "NaN": lambda y: y * float("nan"),
    "nested": lambda y: {"a": (y, [y + 1, None]), "b.c": {"": y + 2}},
    "dataclass": lambda y: Pair(y, None),
    "an object": lambda y: {"cache": Cache(y), "n": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_value_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    model = Returns(KINDS[kind])
    told = leaves(model(X))
    capture(model, X, tmp_path / "t")
    found = leaves(output(Trace(tmp_path / "t")))
    assert [path for path, _ in found] == [path for path, _ in told]
    for (_, mine), (_, theirs) in zip(told, found, strict=True):
        if isinstance(mine, torch.Tensor):
            assert same(mine, theirs)
        else:
            assert mine == theirs


class Doubled(torch.Tensor):
    """A subclass that stands for twice what it holds."""

    def dequantize(self) -> Any:
        return self.as_subclass(torch.Tensor) * 2


ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a subclass": lambda y: y.as_subclass(Doubled),
    "quantized": lambda y: torch.quantize_per_tensor(y, 0.01, 0, torch.qint8),
    "sparse": lambda y: y.to_sparse(),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ODD)
def test_what_stands_for_other_numbers_is_stored_by_these(kind: str, tmp_path: Path) -> None:
    model = Returns(ODD[kind])
    told = model(X)
    capture(model, X, tmp_path / "t")
    trace = Trace(tmp_path / "t")
    assert torch.equal(output(trace), plain(told))
    assert spec_of(told) in [tensor.spec for tensor in trace.manifest.tensors]


def test_a_tensor_without_values_is_told_and_has_none(tmp_path: Path) -> None:
    model = Returns(lambda y: torch.empty(3, 5, device="meta"))
    capture(model, X, tmp_path / "t")
    found = output(Trace(tmp_path / "t"))
    assert (found.device.type, tuple(found.shape)) == ("meta", (3, 5))


def test_plain_values_come_back_exactly() -> None:
    values: list[Any] = [
        0,
        -(2**70),
        True,
        None,
        "ü\n",
        1.1,
        float("inf"),
        2 + 3j,
        b"\x00",
        torch.int8,
        torch.Size([2, 3]),
    ]
    values += [torch.device("cuda:1"), (1, (2.5, "x"))]
    again = [decode(json.loads(json.dumps(encode(value), allow_nan=False))) for value in values]
    assert again == values
    assert [type(value) for value in again] == [type(value) for value in values]
    assert decode(encode(float("nan"))) != decode(encode(float("nan")))


def test_a_plain_value_that_is_not_known_here_is_its_text() -> None:
    unknown = {"device": "of the future", "dtype": "float3", "novel": 5, "size": "x", "bytes": "import os"}
    for name, text in unknown.items():
        assert repr(decode({name: text})).removeprefix("torch.") == str(text)
    assert decode({"dtype": "load"}) != torch.load


def test_events_are_those_of_the_model(tmp_path: Path) -> None:
    model = Stack()
    capture(model, IDS, tmp_path / "t")
    found = events(Trace(tmp_path / "t"))
    entered = [(e.call.path, e.call.caller, e.call.entry) for e in found if isinstance(e, Enter)]
    assert entered[:4] == [("", "", 0), ("embed", "", 0), ("layers.0", "", 1), ("layers.0.norm", "layers.0", 1)]
    assert [e.call.order for e in found if isinstance(e, Exit)] == list(range(13))
    layer = next(e for e in found if isinstance(e, Enter) and e.call.path == "layers.1")
    assert layer.arguments.positional == ("hidden",)
    assert layer.arguments.passed == {"hidden", "mask"}
    assert layer.arguments.values["mask"].shape == (12, 12)


def test_the_place_of_each_call_is_known(tmp_path: Path) -> None:
    capture(Stack(), IDS, tmp_path / "t")
    side = StoredSide(trace := Trace(tmp_path / "t"), 0, {m.path: m.path for m in trace.manifest.modules})
    side.start(lambda: None)
    side.step()
    site = side.site()
    assert site is not None
    assert (Path(site.file).name, site.function) == ("models.py", "forward")
    assert "self.embed(ids)" in Path(site.file).read_text().splitlines()[site.line - 1]


class Slotted:
    """An object that takes no weak reference."""

    __slots__ = ("keys",)

    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys


class Handing(nn.Module):
    """Returns a new object; notes how many of those before are still alive."""

    alive: list[int]
    made: list[weakref.ref[Cache]]

    def forward(self, cache: Any) -> Any:
        self.alive.append(sum(one() is not None for one in self.made))
        new = Cache(cache.keys + 1)
        self.made.append(weakref.ref(new))
        return new


def test_objects_are_told_apart_and_not_kept(tmp_path: Path) -> None:
    model = nn.Sequential(*[Handing() for _ in range(6)]).eval()
    Handing.alive, Handing.made = [], []
    capture(model, (Cache(X),), tmp_path / "t")
    # The one that it is handed.
    assert max(Handing.alive) <= 1
    calls = Trace(tmp_path / "t").manifest.samples[0].calls
    assert [call.outputs.object for call in calls[1:]] == [1, 2, 3, 4, 5, 6]
    assert [call.arguments["cache"].object for call in calls[1:]] == [0, 1, 2, 3, 4, 5]
    capture(Returns(lambda y: Slotted(y)), X, tmp_path / "slotted")
    found = Trace(tmp_path / "slotted").manifest.samples[0].calls[0].outputs
    assert (found.object, [leaf.path for leaf in found.leaves]) == (0, ["keys"])


def test_each_tensor_is_stored_once_and_any_reader_can_read_it(tmp_path: Path) -> None:
    capture(Stack(depth=6), IDS, tmp_path / "t")
    manifest = Trace(tmp_path / "t").manifest
    layers = [call for call in manifest.samples[0].calls if call.type == "Block"]
    masks = {call.arguments["mask"].leaves[0].tensor for call in layers}
    assert len(layers) == 6
    assert len(masks) == 1
    names = []
    for shard in manifest.shards:
        with safe_open(tmp_path / "t" / shard.file, "pt") as file:
            names += file.keys()
            for number, tensor in enumerate(manifest.tensors):
                if tensor.digest in file.keys():  # noqa: SIM118
                    assert same(file.get_tensor(tensor.digest), Trace(tmp_path / "t").tensor(number))
    assert len(names) == len(set(names)) == len({tensor.digest for tensor in manifest.tensors})


def test_what_is_written_in_place_is_stored_as_it_was_at_each_event(tmp_path: Path) -> None:
    model = Chain()
    capture(model, torch.linspace(-1, 1, 8), tmp_path / "t")
    found = events(Trace(tmp_path / "t"))
    first = next(e.value for e in found if isinstance(e, Exit) and e.call.path == "first")
    act = next(e.value for e in found if isinstance(e, Exit) and e.call.path == "act")
    assert first.min() < 0
    assert torch.equal(first.relu(), act)


def test_many_shards_and_large_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtrace.traces.shards.GATHERED", 1000)
    monkeypatch.setattr("qtrace.traces.shards.LARGE", 600)
    model = Stack(width=16)
    told = model(**IDS)
    capture(model, IDS, tmp_path / "t")
    trace = Trace(tmp_path / "t")
    assert len(trace.manifest.shards) > 10
    assert all(same(told[name], tensor) for name, tensor in output(trace).items())


def test_names_with_unusual_characters(tmp_path: Path) -> None:
    model = nn.Sequential()
    for name in ("ü ñ", "a/b\\c", "quote\"'", "new\nline", "<root>", "*", "\u2028", "-"):
        model.add_module(name, nn.Linear(4, 4))
    capture(model.eval(), X, tmp_path / "t")
    trace = Trace(tmp_path / "t")
    assert [path for path, _ in skeleton(trace).named_modules()] == [path for path, _ in model.named_modules()]
    assert len(events(trace)) == 2 * 9 + 1


def test_ten_thousand_modules(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Identity() for _ in range(10_000)]).eval()
    capture(model, torch.ones(2), tmp_path / "t")
    trace = Trace(tmp_path / "t")
    assert len(events(trace)) == 2 * 10_001 + 1
    assert len(trace.manifest.tensors) == 1


def test_a_module_in_several_places_and_several_samples(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.add_module("again", model[0])
    capture(model.eval(), [(X,), (X + 1,)], tmp_path / "t")
    trace = Trace(tmp_path / "t")
    made = skeleton(trace)
    assert made._modules["again"] is made._modules["0"]
    assert [e.call.index for e in events(trace, 1) if isinstance(e, Enter) and e.call.path == "0"] == [0, 1]


def test_the_skeleton_tells_attributes_and_cannot_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LayerNorm(4, eps=1e-3), nn.GELU("tanh")).eval()
    capture(model, X, tmp_path / "t")
    made = skeleton(Trace(tmp_path / "t"))
    norm, gelu = (vars(module) for module in made._modules.values())
    assert [type(module).__name__ for module in made.children()] == ["LayerNorm", "GELU"]
    assert (norm["eps"], norm["normalized_shape"], gelu["approximate"]) == (1e-3, (4,), "tanh")
    assert [tuple(p.shape) for p in made.parameters()] == [(4,), (4,)]
    with pytest.raises(UsageError, match="cannot be run"):
        made(X)


def test_no_more_is_stored_than_was_asked_for(tmp_path: Path) -> None:
    capture(Stack(), IDS, tmp_path / "all")
    capture(Stack(), IDS, tmp_path / "only", only=["layers.*.norm"], skip=["layers.0.norm"])
    capture(Stack(), IDS, tmp_path / "outputs", Form(arguments=False))
    paths = {e.call.path for e in events(Trace(tmp_path / "only")) if isinstance(e, Enter)}
    assert paths == {"", "layers.1.norm"}
    assert all(not e.arguments.values for e in events(Trace(tmp_path / "outputs")) if isinstance(e, Enter))
    sizes = [Trace(tmp_path / name).manifest.stored_bytes for name in ("all", "only", "outputs")]
    assert sizes[1] < sizes[0]
    assert sizes[2] < sizes[0]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_floats_are_stored_narrower_but_for_what_would_overflow(name: str, tmp_path: Path) -> None:
    model = Returns(lambda y: {"y": y, "mask": y * 1e38, "n": torch.arange(3), "half": y.half()})
    told = model(X)
    capture(model, X, tmp_path / "t", Form(cast=name))
    found = output(Trace(tmp_path / "t"))
    dtype = getattr(torch, name)
    assert same(found["y"], told["y"].to(dtype))
    assert same(found["mask"], told["mask"] if name == "float16" else told["mask"].bfloat16())
    assert same(found["n"], told["n"])
    assert same(found["half"], told["half"])


def test_what_is_too_near_to_zero_for_float16_is_stored_as_it_is(tmp_path: Path) -> None:
    model = Returns(lambda y: {"tiny": y.double() * 1e-6, "zero": y * 0, "mixed": torch.stack((y, y * 1e-9))})
    told = model(X)
    capture(model, X, tmp_path / "t", Form(cast="float16"))
    found = output(Trace(tmp_path / "t"))
    assert same(found["tiny"], told["tiny"])
    assert same(found["zero"], told["zero"].half())
    # Beside what is larger it is within the rounding of that.
    assert same(found["mixed"], told["mixed"].half())


def test_a_sketch_is_small_and_tells_the_extremes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5000), nn.Tanh()).eval()
    told = model(X)
    capture(model, X, tmp_path / "t", Form(sketches=True))
    trace = Trace(tmp_path / "t")
    found = output(trace)
    assert found.numel() == LENGTH
    assert found.spec.shape == (2, 5000)
    assert (found.min(), found.max()) == (told.min(), told.max())
    entry = next(t for t in trace.manifest.tensors if t.spec.shape == (2, 5000) and t.spec.min == told.min().item())
    assert entry.mean == pytest.approx(told.mean().item(), rel=1e-5)
    assert entry.stddev == pytest.approx(told.std(unbiased=False).item(), rel=1e-5)
    assert trace.manifest.stored_bytes < 3 * 4 * LENGTH


def test_a_sketch_shows_one_nan_anywhere_and_is_the_same_each_time() -> None:
    tensor = torch.randn(70_001)
    assert torch.equal(sketch(tensor), sketch(tensor.clone()))
    tensor[12_345] = float("nan")
    assert bool(sketch(tensor).isnan().any())
    assert sketch(torch.ones(3, dtype=torch.bool)).tolist() == [1, 1, 1]


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    told = capture(model, X, tmp_path / "t")
    assert all(count == 0 for count in hooks_of(model).values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert Trace(tmp_path / "t").manifest.draws_random
    assert "training mode" in told.warnings[0]
