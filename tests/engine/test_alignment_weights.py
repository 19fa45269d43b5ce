"""Alignment by value and by place: weights under other names, what was fused, and what order must not decide."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.engine.align import Alignment, align
from qtrace.engine.align.weights import likeness, weight_of
from qtrace.engine.model import Model
from qtrace.engine.plan import better_plan, make_plan
from qtrace.errors import UsageError
from qtrace.report.records import Outcome
from tests.engine.test_alignment import infos, pairs
from tests.helpers.models import Block, Chain, Stack, twin


def aligned(reference: nn.Module, candidate: nn.Module, renames: Mapping[str, str] | None = None) -> Alignment:
    return make_plan(Model("reference", reference), Model("candidate", candidate), renames=renames).alignment


class RenamedBlock(nn.Module):
    """A block with other names, defined in another order."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.ln = block.norm
        self.k = block.value
        self.q = block.query
        self.o = block.out


class Renamed(nn.Module):
    """A stack with other names all through."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.tokens = copy.deepcopy(stack.embed)
        blocks = copy.deepcopy(stack).layers
        self.body = nn.ModuleList(RenamedBlock(block) for block in blocks if isinstance(block, Block))
        self.logits = copy.deepcopy(stack.head)


def convolutions() -> Any:
    """Return convolution, batch norm, ReLU, convolution; the norm has seen something."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.randn(8)
    norm.running_var = 0.3 + torch.rand(8)
    return net.eval()


def test_weights_find_their_own_under_other_names_and_in_another_order() -> None:
    stack = Stack(depth=2)
    found = aligned(stack, Renamed(stack))
    by_rule = {c: p.reference for c, p in found.pairs.items() if p.rule == "weights"}
    assert by_rule == {
        "tokens": "embed",
        "logits": "head",
        **{f"body.{n}.{new}": f"layers.{n}.{old}"
           for n in range(2) for new, old in (("k", "value"), ("q", "query"), ("o", "out"))},
    }  # fmt: skip
    assert {found.pairs[path].confidence for path in by_rule} == {"high"}


def test_containers_of_known_pairs_and_what_stands_between_them_are_found_with_low_confidence() -> None:
    stack = Stack(depth=2)
    found = aligned(stack, Renamed(stack))
    told = {c: (p.reference, p.rule, p.confidence) for c, p in found.pairs.items() if p.rule != "weights" and c}
    # The norms hold ones, all alike: only their place tells them apart.
    assert told == {
        "body.0": ("layers.0", "enclosing", "low"),
        "body.1": ("layers.1", "enclosing", "low"),
        "body.0.ln": ("layers.0.norm", "order", "low"),
        "body.1.ln": ("layers.1.norm", "order", "low"),
    }


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_known_however_it_is_rounded_and_scaled(bits: int) -> None:
    torch.manual_seed(0)
    reference, candidate = nn.Linear(64, 32), nn.Linear(64, 32)
    scale = reference.weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    candidate.weight = nn.Parameter((reference.weight / scale).round(), requires_grad=False)
    found = likeness(reference, candidate)
    assert found is not None
    assert found > 0.98
    other = likeness(nn.Linear(64, 32), candidate)
    assert other is not None
    assert other < 0.5


def test_weights_that_cannot_be_read_are_none() -> None:
    assert weight_of(nn.ReLU()) is None
    assert weight_of(nn.Linear(4, 4, device="meta")) is None
    assert likeness(nn.Linear(4, 4), nn.Linear(4, 5)) is None
    assert likeness(nn.LayerNorm(8), nn.LayerNorm(8)) is None, "ones tell nothing"


def test_rows_that_tell_nothing_are_left_out() -> None:
    """A padding token's row is zero, and a toolkit may make NaN of it."""
    torch.manual_seed(0)
    reference = nn.Embedding(8, 16, padding_idx=0)
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.weight[0] = float("nan")
    assert likeness(reference, candidate) == pytest.approx(1.0)
    with torch.no_grad():
        candidate.weight.fill_(float("nan"))
    assert likeness(reference, candidate) is None


def test_two_modules_of_one_weight_are_not_told_apart() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    reference = nn.ModuleDict({"a": layer, "b": copy.deepcopy(layer), "c": nn.Linear(8, 8)})
    candidate = nn.ModuleDict({"x": copy.deepcopy(layer), "z": copy.deepcopy(reference["c"])})
    assert pairs(aligned(reference, candidate)) == {"z": ("c", "weights")}


def test_order_does_not_pair_what_the_weights_deny() -> None:
    """Two versions of a model call query, key, value and key, value, query: order alone would mispair all three."""
    torch.manual_seed(0)
    norm, out = nn.LayerNorm(16), nn.Linear(16, 16)
    ones = [nn.Linear(16, 16) for _ in range(3)]
    others = [nn.Linear(16, 16) for _ in range(3)]
    reference = nn.ModuleDict(OrderedDict(norm=norm, q=ones[0], k=ones[1], v=ones[2], out=out))
    candidate = nn.ModuleDict(OrderedDict(norm=norm, key=others[0], value=others[1], query=others[2], out=out))
    found = aligned(reference, copy.deepcopy(candidate))
    assert pairs(found) == {"norm": ("norm", "exact"), "out": ("out", "exact")}
    assert set(found.alone) == {"q", "k", "v"}


def test_what_has_no_weights_is_paired_between_anchors_of_the_same_types_only() -> None:
    reference = nn.ModuleDict(OrderedDict(a=nn.Linear(4, 4), relu=nn.ReLU(), b=nn.Linear(4, 5)))
    same = nn.ModuleDict(OrderedDict(a=nn.Linear(4, 4), activation=nn.ReLU(), b=nn.Linear(4, 5)))
    assert pairs(aligned(reference, same))["activation"] == ("relu", "order")
    other = nn.ModuleDict(OrderedDict(a=nn.Linear(4, 4), activation=nn.GELU(), b=nn.Linear(4, 5)))
    assert "activation" not in aligned(reference, other).pairs
    two = nn.ModuleDict(OrderedDict(a=nn.Linear(4, 4), one=nn.ReLU(), two=nn.ReLU(), b=nn.Linear(4, 5)))
    assert set(pairs(aligned(reference, two))) == {"a", "b"}


def test_a_fused_convolution_answers_to_the_last_of_its_group() -> None:
    """`0` is convolution, norm and ReLU in one; the exact names 0, 1 and 2 would all lie."""
    reference = convolutions()
    candidate = twin(reference)
    quantization: Any = torch.ao.quantization
    quantization.fuse_modules(candidate, [["0", "1", "2"]], inplace=True)
    found = aligned(reference, candidate)
    assert pairs(found) == {"2": ("2", "fused"), "3": ("3", "exact")}
    assert found.fused == {"0": "0", "1": "0"}
    assert found.alone == ("0", "1")
    plan = make_plan(Model("reference", reference), Model("candidate", candidate))
    assert plan.candidate_keys == {"": "", "2": "2", "3": "3"}
    assert plan.outputs_only == {"2"}, "what a fused pair takes is not the same"


def test_a_norm_folded_away_leaves_its_convolution_what_it_was() -> None:
    reference = convolutions()
    first = torch.nn.utils.fuse_conv_bn_eval(reference[0], reference[1])
    named = nn.Sequential(OrderedDict(zip("023", (first, reference[2], reference[3]), strict=True)))
    found = aligned(reference, named)
    assert pairs(found) == {name: (name, "exact") for name in "023"}
    assert found.fused == {"1": "0"}


def test_a_norm_that_was_lost_is_not_called_fused() -> None:
    reference = convolutions()
    lost = nn.Sequential(OrderedDict(zip("023", (copy.deepcopy(reference[n]) for n in (0, 2, 3)), strict=True)))
    found = aligned(reference, lost)
    assert (found.alone, found.fused) == (("1",), {})


def test_an_activation_that_was_left_out_is_not_called_fused() -> None:
    reference = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    candidate = copy.deepcopy(reference)
    candidate[1] = nn.Identity()
    assert pairs(aligned(reference, candidate))["1"] == ("1", "exact")


def test_query_key_and_value_in_one_projection_are_reported_as_fused() -> None:
    torch.manual_seed(0)
    reference = nn.ModuleDict(
        {"q": nn.Linear(8, 8), "k": nn.Linear(8, 4), "v": nn.Linear(8, 4), "out": nn.Linear(8, 8)}
    )
    candidate = nn.ModuleDict({"qkv": nn.Linear(8, 16), "out": copy.deepcopy(reference["out"])})
    stacked = torch.cat([reference[name].get_parameter("weight").detach() for name in "qkv"])
    fused = nn.Linear(8, 16)
    fused.weight = nn.Parameter(stacked)
    candidate["qkv"] = fused
    found = aligned(reference, candidate)
    assert found.fused == {"q": "qkv", "k": "qkv", "v": "qkv"}
    assert pairs(found) == {"out": ("out", "exact")}
    fused.weight = nn.Parameter(stacked.flip(0))
    assert aligned(reference, candidate).fused == {}


def test_a_rename_comes_first_and_takes_along_what_is_below() -> None:
    reference = infos("layers", "layers.3", "layers.3.q", "layers.3.q.norm", "enc")
    candidate = infos("enc", "enc.layer.3.query", "enc.layer.3.query.norm")
    found = align(reference, candidate, {"enc.layer.*.query": "layers.*.q"})
    assert pairs(found) == {
        "enc": ("enc", "exact"),
        "enc.layer.3.query": ("layers.3.q", "renamed"),
        "enc.layer.3.query.norm": ("layers.3.q.norm", "renamed"),
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("enc.quer", "layers.q", "--rename enc.quer=layers.q: the candidate has no module enc.quer; near: enc.query"),
        (
            "enc.query",
            "layers.k",
            "--rename enc.query=layers.k: the reference has no module layers.k; did you mean layers",
        ),
        ("enc.query", "layers.*", "--rename enc.query=layers.*: the right side has more * than the left one"),
        (
            "**.query",
            "layers.q",
            "--rename **.query=layers.q: here ** stands for nothing; write one * for each component",
        ),
    ],
)
def test_a_rename_that_leads_nowhere_is_one_sentence(old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        align(infos("layers", "layers.q"), infos("enc", "enc.query"), {old: new})
    assert str(caught.value).startswith(message)


def test_only_what_runs_can_be_a_partner() -> None:
    """A dead holder has the right name; what runs instead is found by its weight."""
    torch.manual_seed(0)
    reference = nn.ModuleDict({"proj": nn.Linear(8, 8), "out": nn.Linear(8, 8)})
    candidate = copy.deepcopy(reference)
    candidate["quantized"] = copy.deepcopy(reference["proj"])
    models = Model("reference", reference), Model("candidate", candidate)
    assert "quantized" not in make_plan(*models).alignment.pairs
    calls = {"": 1, "proj": 1, "out": 1}, {"": 1, "proj": 0, "quantized": 1, "out": 1}
    plan = better_plan(make_plan(*models), models, calls)
    assert plan is not None
    assert plan.alignment.pairs["quantized"].reference == "proj"
    assert plan.alignment.pairs["quantized"].rule == "weights"
    assert better_plan(plan, models, calls) is None, "there is no better one"


class Bypassing(nn.Module):
    """Keeps the float layer under its old name, and calls another one that holds the same weight."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.first, self.act, self.second = chain.first, nn.ReLU(), chain.second
        self.replacement = copy.deepcopy(chain.second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.first(self.replacement(self.act(self.first(x))))
        return out


def test_a_run_aligns_again_when_it_knows_what_is_called() -> None:
    reference = Chain()
    report = qtrace.trace(reference, Bypassing(copy.deepcopy(reference)).eval(), torch.randn(2, 8))
    assert report.outcome is Outcome.CLEAN
    assert (report.coverage.compared, report.coverage.reference_calls) == (4, 4)


def test_names_that_the_user_gives_are_followed() -> None:
    reference = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    candidate = nn.Sequential(OrderedDict(x=nn.Linear(4, 4), y=nn.Linear(4, 4)))
    report = qtrace.trace(reference, candidate, torch.randn(2, 4), rename={"x": "a", "y": "b"})
    assert {row.module for row in report.rows} == {"a", "b", ""}
