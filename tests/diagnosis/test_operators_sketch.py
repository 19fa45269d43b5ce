"""Sketches and the partners that are found by them; the split of graphs that are written down here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from qtrace.diagnosis.operators.code import Origin
from qtrace.diagnosis.operators.graph import Kind, Recorded, Recording, Value
from qtrace.diagnosis.operators.pairing import Pairing, Tier, cut_of
from qtrace.diagnosis.operators.sketch import Sketch, sketch
from qtrace.diagnosis.operators.split import parting
from qtrace.numerics.tolerance import Floors

DEPTH = 15


def sketched(tensor: torch.Tensor) -> Sketch:
    found = sketch(tensor)
    assert found is not None
    return found


def values(*tensors: torch.Tensor) -> list[Value]:
    return [Value(index, Kind.OPERATOR, sketched(tensor), index) for index, tensor in enumerate(tensors)]


def paired(reference: Sequence[torch.Tensor], candidate: Sequence[torch.Tensor]) -> Pairing:
    return Pairing(values(*reference), values(*candidate), Floors(), DEPTH)


def tier(reference: torch.Tensor, candidate: torch.Tensor) -> Tier | None:
    return paired([reference], [candidate]).tier_of(sketched(reference), sketched(candidate))


def test_the_norm_of_a_difference_is_told_by_the_projections() -> None:
    x = torch.randn(40, 300)
    errors = []
    for seed in range(20):
        torch.manual_seed(seed)
        noise = torch.randn(40, 300)
        apart = sketched(x + noise).projections - sketched(x).projections
        errors.append(float(apart.square().mean() / noise.double().square().sum()))
    assert sum(errors) / len(errors) == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_shape_does_not_matter_and_rounding_neither(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 40).to(dtype)
    assert tier(x, x.reshape(6, 1, 40)) is Tier.SAME
    assert tier(x, x * (1 + torch.finfo(dtype).eps)) is Tier.SAME
    assert tier(x, torch.randn(2, 3, 40).to(dtype)) is None


@pytest.mark.parametrize("where", [(0, 0, 0), (1, 2, 39)])
def test_one_wrong_element_is_another_tensor(where: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 40)
    wrong = x.clone()
    wrong[where] += 0.1
    assert tier(x, wrong) is None


def test_what_is_related_is_told_apart() -> None:
    x = torch.randn(2, 4, 40)
    assert tier(x, -0.25 * x) is Tier.GAIN
    assert tier(x, x.transpose(1, 2)) is Tier.LAYOUT
    assert tier(x, x[:, 1]) is Tier.SLICE
    assert tier(x[:, 1], x) is Tier.SLICE
    assert cut_of(sketched(x), sketched(x[:, 1])) == (1, 1)
    assert tier(x, x[:, 1] + 1) is None


def test_slices_are_partners_of_a_whole_only_where_all_are_there() -> None:
    x = torch.randn(2, 3, 40)
    whole = paired([x], [x[:, 0], x[:, 1], x[:, 2]])
    assert whole.reference[0].others == (0, 1, 2)
    assert whole.reference[0].tier is Tier.SLICE
    wrong = paired([x], [x[:, 0], x[:, 1], x[:, 2] + 1])
    assert 0 not in wrong.reference
    assert set(wrong.candidate) == {0, 1}
    scaled = paired([x], [x[:, head] * 0.25 for head in range(3)])
    assert scaled.reference[0].tier is Tier.GAIN
    relation = scaled.candidate[1].relation
    assert relation is not None
    assert relation.parameters == {"factor": pytest.approx(0.25), "axis": 1, "index": 1}


def test_constants_pair_only_where_they_look_alike() -> None:
    assert tier(torch.zeros(4, 20), torch.zeros(4, 20)) is Tier.SAME
    assert tier(torch.zeros(4, 20), torch.zeros(80)) is None
    assert tier(torch.ones(4, 20), torch.zeros(4, 20)) is None
    assert not sketched(torch.zeros(4, 20)).varies


def test_the_fill_of_a_mask_and_nan_do_not_hide_the_rest() -> None:
    x = torch.randn(20, 20)
    mask = torch.full((20, 20), torch.finfo(torch.float32).min).triu(1)
    assert tier(x + mask, x + mask) is Tier.SAME
    assert tier(x + mask, x + mask.clamp_min(-1e9)) is Tier.SAME
    assert tier(x + mask, 1.001 * x + mask) is None
    assert tier(x + mask, x + mask.T) is None
    broken = x.clone()
    broken[3, 3] = float("nan")
    assert tier(broken, broken.clone()) is Tier.SAME
    assert tier(x, broken) is None
    assert tier(broken, broken.nan_to_num(5.0)) is None


def test_integers_are_exact() -> None:
    ids = torch.arange(50_000, 50_000 + 400).reshape(20, 20)
    wrong = ids.clone()
    wrong[7, 7] += 1
    assert tier(ids, ids.reshape(-1)) is Tier.SAME
    assert tier(ids, wrong) is None


def test_what_has_no_values_has_no_sketch() -> None:
    assert sketch(torch.empty(0, 4)) is None
    assert sketch(torch.empty(4, 4, device="meta")) is None


def test_long_axes_are_not_cut() -> None:
    found = sketched(torch.randn(600, 4))
    assert set(found.slices) == {1}


# The split, on graphs that are written down: value 0 is an argument, 1 a parameter, the rest are made.


def recording(inputs: dict[int, tuple[int, ...]]) -> Recording:
    made = [Value(0, Kind.ARGUMENT, name="x"), Value(1, Kind.OUTSIDE, name="weight")]
    operators = []
    for number, (index, taken) in enumerate(inputs.items()):
        varying = sketched(torch.randn(4, 4))
        made.append(Value(index, Kind.OPERATOR, varying, number))
        operators.append(Recorded(number, "aten.f", "", (), taken, (index,), Origin(None, None, None), views=False))
    return Recording(operators, made, {"": len(made) - 1})


@pytest.mark.parametrize(
    ("inputs", "agreeing", "first"),
    [
        # A chain: the first that does not agree.
        ({2: (0, 1), 3: (2,), 4: (3,)}, {0, 1, 2}, (3,)),
        # What agrees again later is nobody's concern.
        ({2: (0, 1), 3: (2,), 4: (3,), 5: (4,)}, {0, 1, 4}, (5,)),
        # Two branches part by themselves.
        ({2: (0, 1), 3: (0, 1), 4: (2, 3)}, {0, 1}, (2, 3)),
        # An argument that differs, reshaped: the operator that mixes it with what agrees.
        ({2: (0,), 3: (1,), 4: (2, 3)}, {1, 3}, (4,)),
        # Two things that differ are mixed.
        ({2: (0,), 3: (2, 1), 4: (3,)}, set(), (3,)),
        # Only what differs came in: then its first operator after all.
        ({2: (0,), 3: (2,)}, set(), (2,)),
        # What is returned differs, though the other side holds the same somewhere.
        ({2: (0, 1), 3: (2,)}, {0, 1, 2, 3}, (3,)),
    ],
)
def test_where_a_graph_parts(inputs: dict[int, tuple[int, ...]], agreeing: set[int], first: tuple[int, ...]) -> None:
    graph = recording(inputs)
    found = parting(graph, list(graph.outputs.values()), agreeing.__contains__)
    assert found.values == first
    assert found.left_out is (max(inputs) in agreeing)


def test_what_is_returned_as_it_was_given_has_no_operator() -> None:
    graph = Recording([], [Value(0, Kind.ARGUMENT, name="x")], {"": 0})
    assert parting(graph, [0], lambda _: False).first is None
