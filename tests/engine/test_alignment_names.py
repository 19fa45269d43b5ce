"""Names that lie or say too little: infixes, renumbered containers, swapped names, the user's own renames."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qtrace
from qtrace.engine.align import ModuleInfo, align
from qtrace.errors import UsageError
from qtrace.report.records import Outcome
from tests.engine.test_alignment import infos, pairs
from tests.engine.test_alignment_weights import aligned, convolutions
from tests.helpers.models import Block, Stack

IDS = torch.arange(6).reshape(1, 6)
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def stack(depth: int = 2) -> Stack:
    torch.manual_seed(0)
    return Stack(depth=depth)


class Holder(nn.Module):
    """Wraps a module under a name of choice, and remembers that name."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)
        self.name = name
        self.eval()

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.get_submodule(self.name)(*args, **kwargs)


def held(model: nn.Module, name: str) -> nn.Module:
    """Put a `Holder` around every module of the model that is called."""
    for child_name, child in list(model.named_children()):
        held(child, name)
        if not isinstance(child, nn.ModuleList):
            setattr(model, child_name, Holder(name, child))
    if isinstance(model, nn.ModuleList):
        for place, child in enumerate(model):
            # Its items were wrapped by the loop above.
            assert isinstance(child, Holder), place
    return model


@pytest.mark.parametrize("name", ["wrapped", "norm", "layers", "head"])
def test_a_wrapper_at_every_level_may_use_a_name_of_the_reference(name: str) -> None:
    reference = stack()
    report = qtrace.trace(reference, held(copy.deepcopy(reference), name), IDS)
    assert report.outcome is Outcome.CLEAN
    assert report.coverage.fraction == 1.0
    assert all(row.peir == 0 for row in report.rows if row.peir is not None)


def test_an_attribute_that_says_the_same_of_everybody_is_no_name() -> None:
    paths = ["model", "model.a", "model.a.b", "model.a.c", "model.a.d"]
    candidate = [ModuleInfo("", "M"), *(ModuleInfo(path, "M", {"attr": "model"}) for path in paths)]
    assert pairs(align(infos(*paths), candidate)) == {path: (path, "exact") for path in paths}


def test_another_name_for_a_part_does_not_answer_to_the_whole() -> None:
    """`attn` stands before known names, as a wrapper's component does, and yet wraps nothing."""
    reference = infos("layers", "layers.0", "layers.0.attention", "layers.0.attention.q", "layers.0.norm", "q")
    candidate = infos("layers", "layers.0", "layers.0.attn", "layers.0.attn.q", "layers.0.norm", "attn", "attn.q")
    found = pairs(align(reference, candidate))
    assert {path for path, (name, _) in found.items() if name == "layers.0"} == {"layers.0"}


class Counted(Stack):
    """A stack whose layers have one more before them that does nothing."""

    def __init__(self, other: Stack) -> None:
        nn.Module.__init__(self)
        self.embed, self.head = other.embed, other.head
        self.layers = nn.ModuleList([Nothing(), *other.layers])
        self.eval()


class Nothing(nn.Module):
    def forward(self, hidden: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        return hidden


def test_layers_that_were_counted_anew_are_found_by_their_weights() -> None:
    reference = stack()
    candidate = Counted(copy.deepcopy(reference))
    found = pairs(aligned(reference, candidate))
    assert {path: found[path][0] for path in ("layers.1", "layers.2.query", "layers.1.norm")} == {
        "layers.1": "layers.0",
        "layers.2.query": "layers.1.query",
        "layers.1.norm": "layers.0.norm",
    }
    assert "layers.0" not in found
    report = qtrace.trace(reference, candidate, IDS)
    assert report.coverage.fraction == 1.0
    assert {row.peir for row in report.rows} == {0.0}


def test_a_sequence_without_its_folded_norm_is_counted_anew() -> None:
    reference = convolutions()
    first = torch.nn.utils.fuse_conv_bn_eval(reference[0], reference[1])
    candidate = nn.Sequential(first, copy.deepcopy(reference[2]), copy.deepcopy(reference[3])).eval()
    found = aligned(reference, candidate)
    assert {path: name for path, (name, _) in pairs(found).items()} == {"0": "0", "1": "2", "2": "3"}
    assert found.fused == {"1": "0"}


def test_scales_in_an_activation_do_not_make_its_number_lie() -> None:
    class QuantReLU(nn.ReLU):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1))

    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    reference = nn.Sequential(first, nn.ReLU(), second, nn.Dropout())
    candidate = nn.Sequential(copy.deepcopy(first), QuantReLU(), copy.deepcopy(second))
    found = aligned(reference, candidate).pairs
    assert {path: pair.rule for path, pair in found.items()} == dict.fromkeys(("", "0", "1", "2"), "exact")


def test_one_module_more_at_the_end_does_not_make_names_lie() -> None:
    reference = convolutions()
    candidate = nn.Sequential(*copy.deepcopy(reference), nn.Identity())
    assert pairs(aligned(reference, candidate)) == {str(n): (str(n), "exact") for n in range(4)}


class SwappedNames(Block):
    """Calls by other names what holds the right weights: `query` is what the reference calls `value`."""

    def forward(self, hidden: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.norm(hidden)
        weight = self.value(normed) @ normed.transpose(-1, -2)
        if mask is not None:
            weight = weight + mask
        out: torch.Tensor = hidden + self.out(weight.softmax(-1) @ self.query(normed))
        return out


def swapped(block: nn.Module) -> None:
    modules = block._modules
    modules["query"], modules["value"] = modules["value"], modules["query"]


def test_swapped_names_are_found_out_where_the_models_agree() -> None:
    reference = stack()
    candidate = copy.deepcopy(reference)
    swapped(candidate.layers[1])
    candidate.layers[1].__class__ = SwappedNames
    report = qtrace.trace(reference, candidate, IDS)
    assert report.outcome is Outcome.CLEAN
    assert {row.peir for row in report.rows} == {0.0}
    assert report.coverage.fraction == 1.0


def test_swapped_weights_are_a_fault_under_their_own_names() -> None:
    reference = stack()
    candidate = copy.deepcopy(reference)
    swapped(candidate.layers[1])
    report = qtrace.trace(reference, candidate, IDS)
    assert report.outcome is Outcome.FAULT
    assert {finding.module for finding in report.findings} <= {"layers.1.query", "layers.1.value"}
    assert report.findings


def test_nobody_else_answers_to_what_the_user_gave_a_partner() -> None:
    found = align(infos("a", "a.x", "b"), infos("a", "a.x", "b", "c", "c.x"), {"c": "a"})
    assert pairs(found) == {"c": ("a", "renamed"), "c.x": ("a.x", "renamed"), "b": ("b", "exact")}
    # What wraps it, or stands inside it, may answer as well.
    nested = align(infos("a", "b"), infos("a", "a.inner", "b"), {"a.inner": "a"})
    assert {path: name for path, (name, _) in pairs(nested).items()} == {"a": "a", "a.inner": "a", "b": "b"}


def test_two_renames_to_one_module_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        align(infos("a", "a.x", "b"), infos("c", "c.x", "d", "d.x"), {"c": "a", "d": "a"})
    assert str(caught.value) == (
        "--rename: c and d of the candidate would both answer to a of the reference; "
        "give each a reference module of its own"
    )


def test_a_rename_that_the_weights_contradict_is_warned_about() -> None:
    reference = stack()
    candidate = copy.deepcopy(reference)
    rename = {"layers.0.query": "layers.0.value", "layers.0.value": "layers.0.query"}
    report = qtrace.trace(reference, candidate, IDS, rename=rename)
    assert (
        "by --rename layers.0.query answers to layers.0.value, but it holds the weight of layers.0.query (and 1 more): "
        "is the pattern right?"
    ) in report.warnings
    right = qtrace.trace(reference, candidate, IDS, rename={"layers.0.query": "layers.0.query"})
    assert not any("--rename" in warning for warning in right.warnings)
