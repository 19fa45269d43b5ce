"""The static comparison: what two modules' weights and attributes say before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qtrace.diagnosis.static_differences import StaticNote, minds_mode, pattern_of, static_differences, static_report
from qtrace.engine.model import Model
from qtrace.engine.plan import make_plan
from tests.helpers.models import Stack, Wrapped, twin, wrap_children

OWN = "a weight of its own of"


def said(reference: nn.Module, *candidates: nn.Module) -> list[str]:
    return list(static_differences(reference, candidates))


def changed(change: Callable[[torch.Tensor], torch.Tensor], rows: int = 64, columns: int = 16) -> list[str]:
    """Return what is said of a linear layer whose weight went through `change`."""
    reference = nn.Linear(columns, rows)
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.weight.copy_(change(candidate.weight.clone()))
    return said(reference, candidate)


def reported(reference: nn.Module, candidate: nn.Module) -> list[StaticNote]:
    models = (Model("reference", reference), Model("candidate", candidate))
    return static_report(models, make_plan(*models))


def with_row(row: int, value: torch.Tensor | float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[row] = weight[row] * value
        return weight

    return change


def test_equal_and_rounded_weights_are_no_difference() -> None:
    assert changed(lambda weight: weight) == []
    assert changed(lambda weight: weight * (1 + 1e-7)) == []
    layer = nn.Linear(64, 64)
    assert said(layer, copy.deepcopy(layer).to(torch.bfloat16)) == []
    norm = nn.LayerNorm(8)
    other = copy.deepcopy(norm)
    with torch.no_grad():
        other.weight.add_(1e-7)
    assert said(norm, other) == []


def test_single_rows_are_named_with_what_happened_to_them() -> None:
    assert changed(with_row(17, -1)) == ["weight differs in 1 of 64 rows (17: opposite sign)"]
    assert changed(with_row(3, 0)) == ["weight differs in 1 of 64 rows (3: zero)"]
    assert changed(with_row(3, 0.25)) == ["weight differs in 1 of 64 rows (3: 0.25 times)"]
    assert changed(with_row(3, torch.rand(16))) == ["weight differs in 1 of 64 rows (3)"]
    assert changed(with_row(5, float("nan"))) == [
        "weight holds 16 values that are not finite, against 0 in the reference"
    ]


def test_many_rows_are_counted() -> None:
    def every_second(weight: torch.Tensor) -> torch.Tensor:
        weight[::2] *= -1
        return weight

    (sentence,) = changed(every_second)
    assert sentence.startswith("weight differs in 32 of 64 rows (0: opposite sign, 2: opposite sign,")
    assert sentence.endswith(", …)")


def test_a_weight_that_differs_everywhere_is_described() -> None:
    assert changed(lambda weight: -weight) == ["weight has the opposite sign"]
    assert changed(lambda weight: weight * 0.125) == ["weight is 0.125 times the reference's"]
    assert changed(torch.zeros_like) == ["weight is 0 everywhere, the reference's is not constant"]
    assert changed(lambda weight: weight.roll(1, 0)) == ["weight has the reference's rows in another order"]
    assert changed(lambda weight: weight.t(), 16, 16) == ["weight is the reference's transposed"]
    assert changed(lambda weight: weight + 0.1 * torch.rand_like(weight)) == ["weight differs everywhere"]
    assert changed(lambda weight: torch.randn_like(weight) / 4) == [
        "weight is unrelated to the reference's: never loaded, or in another basis"
    ]


def test_rows_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtrace.diagnosis.tensor_differences._BLOCK", 40)
    assert changed(with_row(63, -1)) == ["weight differs in 1 of 64 rows (63: opposite sign)"]
    assert changed(lambda weight: weight * 3) == ["weight is 3 times the reference's"]


def test_shapes_missing_tensors_and_single_values() -> None:
    assert said(nn.Linear(4, 4), nn.Linear(4, 6, bias=False)) == [
        "out_features 4 against 6",
        "weight [4, 4] against [6, 4]",
        "bias [4] against None",
    ]
    norm = nn.BatchNorm1d(4).eval()
    other = copy.deepcopy(norm)
    assert isinstance(other.num_batches_tracked, torch.Tensor)
    other.num_batches_tracked.add_(3)
    assert said(norm, other) == ["num_batches_tracked 0 against 3"]


def test_what_only_one_side_has_is_no_difference() -> None:
    layer = nn.Linear(4, 4)
    quantized: Any = copy.deepcopy(layer)
    quantized.register_buffer("weight_scale", torch.ones(4))
    quantized.register_buffer("zero_point", torch.zeros(4))
    quantized.bits = 8
    assert said(layer, quantized) == []
    assert said(quantized, layer) == []
    assert said(layer, Wrapped(layer), layer) == []
    with torch.no_grad():
        quantized.weight[0].mul_(-1)
    assert said(layer, Wrapped(quantized), quantized) == ["weight differs in 1 of 4 rows (0: opposite sign)"]


def test_plain_attributes_are_compared_by_value() -> None:
    class Own(nn.Module):
        def __init__(self, **values: object) -> None:
            super().__init__()
            vars(self).update(values)

    same = {"nan": float("nan"), "act": F.gelu, "some": lambda x: x, "dtype": torch.float32}
    assert said(Own(**same), Own(**{**same, "nan": float("nan"), "some": lambda x: x + 1})) == []
    one = Own(eps=1e-6, cap=30.0, act=F.gelu, dtype=torch.float32, size=(2, 3))
    other = Own(eps=1e-5, cap=None, act=F.relu, dtype=torch.bfloat16, size=(2, 4))
    assert said(one, other) == [
        "eps 1e-06 against 1e-05",
        "cap 30.0 against None",
        "act gelu against relu",
        "dtype torch.float32 against torch.bfloat16",
        "size (2, 3) against (2, 4)",
    ]


def test_the_mode_counts_only_where_the_module_minds_it() -> None:
    class Minds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.1, training=self.training)

    class Ignores(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    minding = (nn.Dropout(0.1), nn.BatchNorm2d(4), nn.RReLU(), nn.LSTM(4, 4, 2, dropout=0.1), Minds())
    ignoring = (
        nn.Linear(4, 4),
        nn.Dropout(0.0),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.LSTM(4, 4),
        nn.Sequential(),
        Ignores(),
    )
    for module in (*minding, *ignoring):
        assert minds_mode(module) == (module in minding), module
        expected = ["training False against True"] if module in minding else []
        assert said(twin(module), copy.deepcopy(module).train()) == expected


def test_a_pair_that_agrees_has_no_notes() -> None:
    stack = Stack()
    assert reported(stack, twin(stack)) == []
    assert reported(stack, wrap_children(stack)) == []
    assert reported(stack, twin(stack).to(torch.bfloat16)) == []


def test_layers_that_say_the_same_are_one_note_and_single_ones_come_first() -> None:
    stack = Stack(depth=3)
    other: Any = twin(stack)
    for layer in other.layers:
        layer.norm.eps = 1e-3
        with torch.no_grad():
            layer.value.weight.add_(torch.rand_like(layer.value.weight))
    other.layers[1].out.extra = 1
    with torch.no_grad():
        other.head.weight[2].neg_()
    notes = reported(stack, other)
    assert [str(note) for note in notes] == [
        "layers.*.norm (3 modules): eps 1e-05 against 0.001",
        "head: weight differs in 1 of 16 rows (2: opposite sign)",
        "layers.*.value (3 modules): weight differs everywhere",
    ]
    assert notes[0].members == ("layers.0.norm", "layers.1.norm", "layers.2.norm")


def test_no_more_than_twenty_notes_are_made() -> None:
    reference = nn.ModuleDict({f"layer_{letter}": nn.Linear(4, 4) for letter in "abcdefghijklmnopqrstuvwxyz"})
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        for weight in candidate.parameters():
            weight.neg_()
    notes = reported(reference, candidate)
    assert len(notes) == 20
    # 26 layers say it of their weight and of their bias: 52 notes, of which 19 are shown.
    assert str(notes[-1]) == "<root>: 33 more modules or groups of modules differ"


class Tied(nn.Module):
    """An embedding whose weight is the head's as well, where it is tied."""

    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        if tie:
            self.head.weight = self.embed.weight
        self.eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embed(ids))
        return out


def test_a_tie_that_was_lost_is_named_with_both_weights() -> None:
    tied, untied = Tied(True), Tied(False)
    untied.load_state_dict(tied.state_dict())
    assert [str(note) for note in reported(tied, untied)] == [
        f"embed.weight: head.weight is tied to it in the reference, but {OWN} equal values in the candidate"
    ]
    with torch.no_grad():
        untied.head.weight[0].zero_()
    assert [str(note) for note in reported(tied, untied)] == [
        f"embed.weight: head.weight is tied to it in the reference, but {OWN} other values in the candidate",
        "head: weight differs in 1 of 16 rows (0: zero)",
    ]
    assert reported(tied, copy.deepcopy(tied)) == []


def test_a_tie_that_was_made_is_named() -> None:
    untied = Tied(False)
    tied = Tied(True)
    with torch.no_grad():
        tied.embed.weight.copy_(untied.embed.weight)
    first, second = reported(untied, tied)
    assert str(first) == (
        f"embed.weight: head.weight is tied to it in the candidate, but {OWN} other values in the reference"
    )
    assert second.module == "head"


def test_a_module_that_the_reference_has_in_two_places_and_the_candidate_twice() -> None:
    shared = nn.Linear(4, 4)
    reference = nn.ModuleDict({"encoder": nn.Sequential(shared), "decoder": nn.Sequential(shared)})
    candidate: Any = nn.ModuleDict(
        {"encoder": nn.Sequential(copy.deepcopy(shared)), "decoder": nn.Sequential(copy.deepcopy(shared))}
    )
    notes = [str(note) for note in reported(reference, candidate)]
    assert notes[0].startswith(f"encoder.0.weight: decoder.0.weight is tied to it in the reference, but {OWN}")
    with torch.no_grad():
        candidate["decoder"][0].weight.neg_()
    assert "weight has the opposite sign" in [note.sentence for note in reported(reference, candidate)]


def test_meta_weights_have_nothing_to_say() -> None:
    assert reported(Stack().to("meta"), Stack()) == []
    assert reported(Stack(), Stack().to("meta")) == []


def test_what_paths_of_one_form_have_in_common() -> None:
    assert pattern_of(["layers.0.fc", "layers.12.fc"]) == "layers.*.fc"
    assert pattern_of(["layers.0.fc"]) == "layers.0.fc"
    assert pattern_of([""]) == ""


def with_column(column: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[:, column] *= value
        return weight

    return change


def transposed_corner(weight: torch.Tensor) -> torch.Tensor:
    weight[:, :8] = weight[:, :8].t().clone()
    return weight


def test_columns_order_and_rounding_are_told() -> None:
    assert changed(with_column(3, 0)) == ["weight differs in 1 of 16 columns (3: zero)"]
    assert changed(with_column(3, -1)) == ["weight differs in 1 of 16 columns (3: opposite sign)"]
    (corner,) = changed(transposed_corner, rows=8)
    assert corner == ("weight has the reference's values in another order: differs in 8 of 16 columns (0, 1, 2, 3, …)")
    assert changed(lambda weight: weight.bfloat16().float()) == ["weight is the reference's, rounded to bfloat16"]
    (flipped,) = changed(with_row(3, -1))
    assert "order" not in flipped


def test_a_row_that_is_zero_is_told_where_all_others_differ_too() -> None:
    (sentence,) = changed(lambda weight: with_row(5, 0)(weight.roll(1, 0).flip(1)))
    assert sentence.endswith("zero in 1 of 64 rows (5)")


def test_entries_that_differ_by_one_factor_tell_it() -> None:
    norm = nn.LayerNorm(8)
    with torch.no_grad():
        norm.weight.uniform_(1, 2)
    other = copy.deepcopy(norm)
    with torch.no_grad():
        other.weight[:4] *= 1.5
    assert said(norm, other) == ["weight differs in 4 of 8 entries (0, 1, 2, 3): 1.5 times"]
