"""Layouts that the shapes alone suggest, and differences that only masked positions have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtrace.engine.pair import PairComparer
from qtrace.numerics.relations import excuses, masked_positions, presumed_layout
from qtrace.report.records import Relation


@pytest.mark.parametrize(
    ("reference", "candidate", "parameters"),
    [
        ((2, 10, 32), (10, 2, 32), {"permute": [1, 0, 2]}),
        ((2, 64, 32), (2, 32, 64), {"permute": [0, 2, 1]}),
        ((2, 8, 16, 16), (2, 16, 16, 8), {"permute": [0, 3, 1, 2]}),
        ((2, 12, 64), (24, 64), {"reshape": [2, 12, 64]}),
        ((2, 12, 4, 16), (2, 12, 64), {"reshape": [2, 12, 4, 16]}),
        ((1, 12, 64), (12, 64), {"unsqueeze": [0]}),
    ],
)
def test_shapes_that_leave_one_way_are_measured_in_it(
    reference: tuple[int, ...], candidate: tuple[int, ...], parameters: dict[str, list[int]]
) -> None:
    found = presumed_layout(torch.randn(reference), torch.randn(candidate))
    assert found is not None
    assert found[0].shape == reference
    assert found[1] == Relation("layout", {**parameters, "presumed": True})
    assert not excuses(found[1])


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [((4, 4, 8), (8, 4, 5)), ((6, 6, 6, 2), (2, 6, 6, 7)), ((2, 3, 2, 5), (5, 3, 2, 2)), ((4, 6), (3, 8))],
)
def test_shapes_that_leave_several_ways_or_none_are_not_guessed(
    reference: tuple[int, ...], candidate: tuple[int, ...]
) -> None:
    assert presumed_layout(torch.randn(reference), torch.randn(candidate)) is None


def test_integers_are_never_presumed() -> None:
    assert presumed_layout(torch.ones(2, 5, dtype=torch.long), torch.ones(5, 2, dtype=torch.long)) is None


@given(st.permutations([2, 3, 5, 7]), st.integers(0, 2**31))
def test_a_presumption_never_makes_two_different_tensors_equal(shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(2, 3, 5, 7, generator=generator)
    candidate = torch.randn(shape, generator=generator)
    pair = PairComparer().compare(reference, candidate)
    assert pair is not None
    found = pair.statistics()
    assert found.peir is not None
    assert found.peir > 0.05


def test_a_linear_layer_in_the_place_of_a_convolution_has_its_channels_last() -> None:
    reference = torch.randn(2, 6, 6)
    moved = reference.transpose(1, 2) + 0.1 * torch.randn(2, 6, 6)
    pair = PairComparer().compare(reference, moved.contiguous(), channels=(1, -1))
    assert pair is not None
    assert pair.layout is not None
    assert pair.layout.parameters["permute"] == [0, 2, 1]
    assert (pair.statistics().peir or 1.0) < 0.2
    equal = PairComparer().compare(reference, reference.clone(), channels=(1, -1))
    assert equal is not None
    assert equal.layout is None


def test_what_differs_at_masked_positions_alone_is_said_so() -> None:
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[0, :3] = True
    reference = torch.randn(2, 6, 4)
    candidate = reference.clone()
    candidate[0, 1:3] += 1
    relation = masked_positions(reference, candidate, hidden, 1e-5)
    assert relation is not None
    assert (relation.parameters["first"], relation.parameters["last"]) == (1, 2)
    assert str(relation) == "padding: masked positions 1 to 2 differ, all others agree"
    assert relation.error == 0
    assert not excuses(relation)
    candidate[1, 0] += 1
    assert masked_positions(reference, candidate, hidden, 1e-5) is None
    assert masked_positions(reference, reference.clone(), hidden, 1e-5) is None
