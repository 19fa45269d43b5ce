"""Relations between two tensors: found where they hold, and only there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.numerics import measure
from qtrace.numerics.relations import gain_relation, mask_relation, undo_layout


@pytest.mark.parametrize(
    ("reference", "move", "parameters"),
    [
        ((2, 3, 4), lambda t: t.permute(0, 2, 1), {"permute": [0, 2, 1]}),
        ((1, 84, 2, 32), lambda t: t.transpose(1, 2), {"permute": [1, 0, 2]}),
        ((48, 64, 1, 1, 1), lambda t: t.reshape(1, 48, 64), {"squeeze": [0]}),
        ((1, 48, 64), lambda t: t.reshape(48, 64, 1, 1, 1), {"squeeze": [2, 3, 4]}),
        ((5, 6), lambda t: t[None, :, None], {"squeeze": [0, 2]}),
        ((6, 4), lambda t: t.reshape(2, 3, 4), {"reshape": [6, 4]}),
        ((2, 3, 4, 5), lambda t: t.permute(0, 2, 3, 1), {"permute": [0, 3, 1, 2]}),
    ],
)
def test_a_layout_is_undone_and_described(reference, move, parameters) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(reference)
    undone = undo_layout(wanted, move(wanted).contiguous())
    assert undone is not None
    found, relation = undone
    assert torch.equal(found, wanted)
    assert relation.kind == "layout"
    assert parameters.items() <= relation.parameters.items() or "unsqueeze" in relation.parameters


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)), st.sampled_from([(2, 3, 4, 5), (3, 3, 2, 5), (4, 4, 4, 2)]))
def test_every_permutation_comes_back(order: list[int], shape: tuple[int, ...]) -> None:
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    moved = wanted.permute(order).contiguous()
    if moved.shape == wanted.shape:
        return
    undone = undo_layout(wanted, moved)
    assert undone is not None
    assert torch.equal(undone[0], wanted)


def test_a_folded_factor_or_coarse_rounding_does_not_hide_the_layout() -> None:
    wanted = torch.randn(1, 84, 2, 32)
    for moved in (wanted * 32**-0.5, (wanted * 4).round() / 4, wanted + 0.2 * torch.randn_like(wanted)):
        undone = undo_layout(wanted, moved.transpose(1, 2).contiguous())
        assert undone is not None
        assert torch.equal(undone[0], moved)


def test_unrelated_values_of_a_fitting_shape_are_no_layout() -> None:
    assert undo_layout(torch.randn(6, 8), torch.randn(8, 6)) is None
    assert undo_layout(torch.randn(6, 8), torch.randn(6, 7)) is None
    assert undo_layout(torch.randn(2, 3), torch.full((3, 2), float("nan"))) is None
    assert undo_layout(torch.empty(0, 3), torch.empty(3, 0)) is None


def test_values_that_share_a_sign_are_no_layout_by_that_alone() -> None:
    # A plain cosine of two positive tensors is high in any order.
    assert undo_layout(torch.rand(6, 8) + 1, torch.rand(8, 6) + 1) is None
    index = torch.arange(48).reshape(6, 8)
    assert undo_layout(index, (index.T + 1).contiguous()) is None
    assert undo_layout(index, index.T.contiguous()) is not None


def test_large_tensors_are_judged_on_a_sample_of_the_whole() -> None:
    wanted = torch.randn(64, 50, 40)
    moved = wanted.permute(2, 0, 1).contiguous()
    undone = undo_layout(wanted, moved)
    assert undone is not None
    assert torch.equal(undone[0], wanted)
    # Wrong in the second half only: half of the energy is lost, which is no layout any more.
    broken = moved.clone()
    broken[:, 32:] = torch.randn(40, 32, 50)
    assert undo_layout(wanted, broken) is None


def causal(fill: float, size: int = 4) -> torch.Tensor:
    return torch.full((1, 1, size, size), fill).triu(1)


def test_masks_that_block_the_same_entries_are_related() -> None:
    relation = mask_relation(causal(torch.finfo(torch.float32).min), causal(-120.0))
    assert relation is not None
    assert (relation.kind, relation.error) == ("mask", 0.0)
    assert relation.parameters["candidate_fill"] == -120.0
    assert mask_relation(causal(float("-inf")), causal(-1e9)) is not None


@pytest.mark.parametrize(
    "candidate",
    [
        causal(-120.0).transpose(-1, -2),
        torch.zeros(1, 1, 4, 4),
        torch.ones(1, 4, dtype=torch.int64),
        causal(float("nan")),
    ],
)
def test_masks_that_block_other_entries_are_not(candidate: torch.Tensor) -> None:
    assert mask_relation(causal(-3.4e38), candidate) is None


def test_logits_that_happen_to_be_low_are_no_mask() -> None:
    low = torch.randn(4, 4) * 10 - 60
    assert mask_relation(low, low + 1e-3) is None


def test_what_is_allowed_counts_in_the_masks_error() -> None:
    biased = causal(-1e9) + torch.eye(4) * 0.5
    relation = mask_relation(causal(-1e9), biased)
    assert relation is not None
    assert relation.error == 0.5


def gain(reference: torch.Tensor, candidate: torch.Tensor) -> dict[str, object] | None:
    relation = gain_relation(reference, candidate, measure(reference, candidate).result())
    return relation.parameters if relation is not None else None


@pytest.mark.parametrize(
    ("factor", "name"), [(32**-0.5, "1/sqrt(32)"), (0.125, "1/8"), (-1.0, "-1"), (3.0, "3"), (0.3, None)]
)
def test_one_factor_is_found_and_simple_ones_have_a_name(factor: float, name: str | None) -> None:
    wanted = torch.randn(4, 64)
    found = gain(wanted, wanted * factor)
    assert found is not None
    assert found["factor"] == pytest.approx(factor, rel=1e-5)
    assert found.get("name") == name


def test_what_is_no_single_factor_is_no_gain() -> None:
    wanted = torch.randn(4, 64)
    assert gain(wanted, wanted.clone()) is None
    assert gain(wanted, wanted + 1e-6 * torch.randn_like(wanted)) is None
    assert gain(wanted, wanted * 2 + 0.01 * torch.randn_like(wanted)) is None
    assert gain(wanted, wanted.to(torch.bfloat16)) is None
    assert gain(wanted, wanted * torch.linspace(0.99, 1.01, 64)) is None
    assert gain(torch.zeros(4), torch.ones(4)) is None
    assert gain(wanted, wanted * float("nan")) is None


def test_in_a_coarse_dtype_the_factor_must_be_what_makes_the_difference() -> None:
    wanted = torch.randn(84, 64).bfloat16()
    noisy = (wanted.float() * 1.07 + 0.08 * torch.randn(84, 64)).bfloat16()
    assert gain(wanted, noisy) is None
    assert gain(wanted, wanted * 1.5) is not None


def test_a_huge_channel_does_not_hide_that_the_others_have_another_factor() -> None:
    wanted = torch.randn(84, 64) * (1 + 500 * (torch.arange(64) == 5))
    candidate = wanted * (1 + 0.5 * (torch.arange(64) == 5))
    assert gain(wanted.bfloat16(), candidate.bfloat16()) is None
    assert gain(wanted.bfloat16(), (wanted * 1.5).bfloat16()) is not None
