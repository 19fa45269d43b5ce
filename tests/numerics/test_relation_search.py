"""`relate`: each relation is found where it was made, and nothing is found where nothing was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.numerics import measure
from qtrace.numerics.relations import channel_factors, relate
from tests.helpers.relations import (
    FINE,
    REFERENCES,
    RELATED,
    UNRELATED,
    Change,
    factors,
    of_heads,
    on_a_grid,
    orthogonal,
    related,
    shifted,
    table,
)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(("kind", "name", "change"), table(RELATED, FINE))
def test_a_relation_is_found_where_it_was_made(kind: str, name: str, change: Change, reference: str) -> None:
    wanted = REFERENCES[reference]()
    candidate = change(wanted)
    if torch.equal(candidate.to(wanted.dtype), wanted):
        assert related(wanted, candidate) is None
        return
    relation = related(wanted, candidate)
    assert relation is not None
    assert relation.kind == kind
    assert relation.error is not None
    assert relation.error < 1e-6


@pytest.mark.parametrize(("kind", "name", "change"), table(RELATED))
def test_a_relation_is_found_in_bfloat16(kind: str, name: str, change: Change) -> None:
    wanted = torch.randn(1, 84, 64).bfloat16()
    relation = related(wanted, change(wanted))
    assert relation is not None
    assert relation.kind == kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("change", UNRELATED)
def test_what_a_fault_leaves_is_no_relation(change: str, reference: str, dtype: torch.dtype) -> None:
    wanted = REFERENCES[reference]().to(dtype)
    relation = related(wanted, UNRELATED[change](wanted))
    assert relation is None


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 10_000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16]),
    st.sampled_from([0.0, 0.01, 0.1, 1.0]),
)
def test_random_tensors_are_related_to_none(shape: list[int], seed: int, dtype: torch.dtype, part: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(shape, generator=generator)
    candidate = part * wanted + torch.randn(shape, generator=generator)
    relation = related(wanted.to(dtype), candidate.to(dtype))
    # One or two elements are one factor apart, whatever they are.
    assert relation is None or wanted.numel() <= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(2, 4), st.integers(0, 10_000))
def test_random_levels_are_related_to_none(tokens: int, channels: int, levels: int, seed: int) -> None:
    """Few different values agree easily by chance: signs, one-hot rows, tiny integers."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randint(0, levels, (2, tokens, channels), generator=generator)
    for dtype in (torch.int64, torch.float32):
        wanted, candidate = pair.to(dtype)
        relation = related(wanted, candidate)
        assert relation is None or wanted.numel() <= 4


def test_without_thorough_only_masks_and_one_gain_are_asked_for() -> None:
    wanted = torch.randn(84, 64)
    for candidate in (wanted * factors(64), wanted.relu(), wanted.flip(-1), shifted(wanted, 1)):
        assert relate(wanted, candidate, measure(wanted, candidate).result(), thorough=False) is None
    gain = relate(wanted, wanted / 8, measure(wanted, wanted / 8).result(), thorough=False)
    assert gain is not None
    assert gain.kind == "gain"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_related(bad: float) -> None:
    wanted = torch.randn(84, 64)
    candidate = wanted * factors(64)
    candidate[3, 3] = bad
    assert related(wanted, candidate) is None
    assert related(candidate, wanted) is None


@pytest.mark.parametrize(
    ("wanted", "candidate"),
    [
        (torch.zeros(4, 8), torch.randn(4, 8)),
        (torch.randn(4, 8), torch.zeros(4, 8)),
        (torch.ones(4, 8), torch.full((4, 8), 2.0)),
        (torch.randn(4, 8), torch.ones(4, 8)),
        (torch.empty(0, 8), torch.empty(0, 8)),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.randn(1, 8), torch.randn(1, 8)),
        (torch.randn(8, 1), torch.randn(8, 1)),
        (torch.randn(3, 4), torch.randn(4, 3)),
        (torch.randn(4, 8, dtype=torch.complex64), torch.randn(4, 8, dtype=torch.complex64)),
        (torch.rand(40, 8) > 0.5, torch.rand(40, 8) > 0.5),
        (torch.randint(0, 50_000, (1, 84)), torch.randint(0, 50_000, (1, 84))),
    ],
)
def test_edges_are_related_to_none(wanted: torch.Tensor, candidate: torch.Tensor) -> None:
    same = wanted.shape == candidate.shape
    found = measure(wanted, candidate if same else wanted).result()
    assert relate(wanted, candidate, found, thorough=True) is None


def test_neither_side_is_written_to() -> None:
    wanted = torch.randn(2, 40, 64)
    for _, _, change in table(RELATED, FINE):
        candidate = change(wanted)
        before = wanted.clone(), candidate.clone()
        related(wanted, candidate)
        assert torch.equal(wanted, before[0])
        assert torch.equal(candidate, before[1])


def test_strides_do_not_matter() -> None:
    wanted = torch.randn(64, 84).T
    for kind, _, change in table(RELATED, FINE):
        candidate = change(wanted).T.contiguous().T
        relation = related(wanted, candidate)
        assert relation is not None
        assert relation.kind == kind


def test_the_factors_of_the_channels_come_back() -> None:
    wanted, scales = torch.randn(2, 42, 64), factors(64)
    relation = related(wanted, wanted * scales)
    assert relation is not None
    assert relation.parameters == {
        "axis": -1,
        "channels": 64,
        "min": pytest.approx(0.3, rel=1e-5),
        "max": pytest.approx(2.3, rel=1e-5),
    }
    torch.testing.assert_close(channel_factors(wanted, wanted * scales, -1).float(), scales)


def test_images_have_their_channels_on_axis_1() -> None:
    wanted, scales = torch.randn(2, 16, 12, 10), factors(16)
    candidate = wanted * scales[:, None, None]
    relation = related(wanted, candidate)
    assert relation is not None
    assert (relation.kind, relation.parameters["axis"]) == ("channel_gain", 1)
    torch.testing.assert_close(channel_factors(wanted, candidate, 1).float(), scales)


def test_a_dead_channel_has_factor_1_and_one_that_died_is_no_gain() -> None:
    wanted = torch.randn(84, 64)
    wanted[:, 7] = 0
    candidate = wanted * factors(64)
    relation = related(wanted, candidate)
    assert relation is not None
    assert relation.kind == "channel_gain"
    assert channel_factors(wanted, candidate, -1)[7] == 1
    candidate[:, 9] = 0
    assert related(wanted, candidate) is None


@pytest.mark.parametrize("scaled", [1, 10, 31])
def test_few_scaled_channels_are_damage_and_no_gain(scaled: int) -> None:
    wanted = torch.randn(84, 64)
    for common in (1.0, 0.5):
        scales = torch.full((64,), common)
        scales[:scaled] *= factors(scaled) + 0.05
        assert related(wanted, wanted * scales) is None


def test_rows_that_are_all_alike_fit_any_factor_and_prove_nothing() -> None:
    for count in (2, 84):
        assert related(torch.randn(64).expand(count, 64), torch.randn(64).expand(count, 64)) is None
        sizes = torch.linspace(1, 3, count)[:, None]
        assert related(sizes * torch.randn(64), sizes * torch.randn(64)) is None


@pytest.mark.parametrize(
    ("change", "parameters"),
    [
        (RELATED["halves"]["swapped"], {"axis": -1, "how": "swapped"}),
        (RELATED["halves"]["interleaved"], {"axis": -1, "how": "interleaved"}),
        (RELATED["halves"]["deinterleaved"], {"axis": -1, "how": "deinterleaved"}),
        (RELATED["halves"]["heads"], {"axis": -1, "how": "interleaved", "head_dim": 16}),
        (of_heads(RELATED["halves"]["swapped"], 32), {"axis": -1, "how": "swapped", "head_dim": 32}),
    ],
)
def test_halves_say_how(change: Change, parameters: dict[str, object]) -> None:
    wanted = torch.randn(1, 4, 64)
    relation = related(wanted, change(wanted))
    assert relation is not None
    assert (relation.kind, relation.parameters) == ("halves", parameters)


@pytest.mark.parametrize(("axis", "by"), [(1, 1), (1, -5), (2, 3), (0, 1), (3, 2)])
def test_shifts_name_axis_and_distance(axis: int, by: int) -> None:
    wanted = torch.randn(4, 12, 10, 9)
    relation = related(wanted, shifted(wanted, by, axis))
    assert relation is not None
    assert relation.kind == "shifted"
    assert relation.parameters == {"axis": axis if axis < 3 else -1, "by": by}


def test_positions_that_start_elsewhere_are_a_shift_and_a_moved_edge_is_none() -> None:
    positions = torch.arange(84)[None]
    relation = related(positions, positions + 1)
    assert relation is not None
    assert (relation.kind, relation.parameters) == ("shifted", {"axis": -1, "by": -1})
    assert related(positions, positions * 2) is None
    padding = (torch.arange(84) < 70).long()[None]
    assert related(padding, shifted(padding, 1, -1)) is None


def test_clips_name_the_bounds_that_cut() -> None:
    wanted = torch.randn(84, 64)
    relation = related(wanted, wanted.clamp(max=1.0))
    assert relation is not None
    assert relation.kind == "clipped"
    assert relation.parameters == {"hi": 1.0, "share": pytest.approx(float((wanted > 1).float().mean()))}


def test_one_value_that_is_lower_is_no_clip() -> None:
    wanted = torch.randn(84, 64)
    candidate = wanted.clone().reshape(-1)
    candidate[wanted.argmax()] = wanted.flatten().topk(2).values[1]
    assert related(wanted, candidate.reshape(84, 64)) is None
    assert related(wanted, torch.full_like(wanted, 0.5)) is None


def test_a_grid_is_described_and_truncation_is_none() -> None:
    wanted = torch.randn(84, 64)
    relation = related(wanted, on_a_grid(wanted, 8).clamp(-1.5, 1.5))
    assert relation is None or relation.kind != "rounded"
    step = 2.0**-5
    relation = related(wanted, (wanted / step).round().clamp(-48, 48) * step)
    assert relation is not None
    assert relation.kind == "rounded"
    assert relation.parameters["step"] == pytest.approx(step)
    assert relation.parameters["levels"] == 97
    cut = float((wanted.abs() > 48.5 * step).float().mean())
    assert relation.parameters["clipped"] == pytest.approx(cut)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_a_cast_names_its_dtype_and_survives_rounding_before_it(name: str) -> None:
    wanted = torch.randn(84, 64)
    near = wanted * (1 + 1e-7 * torch.randn_like(wanted))
    relation = related(wanted, near.to(getattr(torch, name)).float())
    assert relation is not None
    assert (relation.kind, relation.parameters) == ("cast", {"dtype": name})
    assert relation.error is not None
    assert relation.error < 1e-6


def test_values_beyond_a_dtypes_range_are_cast_to_its_ends() -> None:
    wanted = torch.randn(84, 64) * 300
    candidate = wanted.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    relation = related(wanted, candidate)
    assert relation is not None
    assert relation.parameters == {"dtype": "float8_e4m3fn"}


def test_a_model_that_ran_in_bfloat16_is_no_cast() -> None:
    weight = torch.randn(64, 64)
    wanted = torch.randn(84, 64)
    assert related(wanted @ weight, (wanted.bfloat16() @ weight.bfloat16()).float()) is None


def test_zero_channels_and_few_moved_ones_do_not_disturb_a_permutation() -> None:
    wanted = torch.randn(84, 64)
    wanted[:, [5, 20, 40]] = 0
    relation = related(wanted, wanted[:, torch.randperm(64)])
    assert relation is not None
    assert relation.kind == "permuted_channels"
    assert relation.parameters["channels"] == 64
    assert 32 < relation.parameters["moved"] <= 64
    order = torch.arange(64)
    order[:30] = order[:30].flip(0)
    assert related(wanted, wanted[:, order]) is None


def test_one_token_permuted_proves_nothing() -> None:
    wanted = torch.randn(1, 64)
    assert related(wanted, wanted[:, torch.randperm(64)]) is None


@pytest.mark.parametrize("tokens", [2, 3, 8, 200])
def test_a_rotation_needs_two_tokens_that_are_not_collinear(tokens: int) -> None:
    wanted, turn = torch.randn(tokens, 64, dtype=torch.float64), orthogonal(64)
    relation = related(wanted, wanted @ turn)
    assert relation is not None
    assert (relation.kind, relation.parameters) == ("rotation", {"axis": -1, "tokens": tokens})
    assert related(wanted[:1], wanted[:1] @ turn) is None
    collinear = torch.randn(64).double() * torch.linspace(1, 3, tokens)[:, None]
    assert related(collinear, collinear @ turn) is None


def test_a_rotation_of_padded_and_repeated_tokens_is_found_and_one_wrong_token_is_not_hidden() -> None:
    wanted, turn = torch.randn(300, 64), orthogonal(64).float()
    wanted[200:] = 0
    wanted[10:60] = wanted[10]
    candidate = wanted @ turn
    relation = related(wanted, candidate)
    assert relation is not None
    assert relation.kind == "rotation"
    candidate[7] = candidate[7].roll(1)
    assert related(wanted, candidate) is None


def test_a_bool_mask_and_an_additive_one_are_related() -> None:
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    additive = torch.zeros(1, 1, 4, 4).masked_fill(~allowed, -math.inf)
    for pair, side in (((allowed, additive), "candidate_fill"), ((additive, allowed), "reference_fill")):
        relation = related(*pair)
        assert relation is not None
        assert (relation.kind, relation.parameters, relation.error) == ("mask", {side: -math.inf}, 0.0)
    assert related(~allowed, additive) is None
    assert related(allowed.transpose(-1, -2), additive) is None


def _best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("change", ["other values", "noise"])
def test_a_large_pair_without_relation_costs_a_few_passes(change: str) -> None:
    wanted = torch.randn(2048, 1024)
    candidate = UNRELATED[change](wanted)
    found = measure(wanted, candidate).result()
    one_pass = _best(lambda: (wanted.double() - candidate.double()).abs().max())
    assert _best(lambda: relate(wanted, candidate, found, thorough=True)) < 40 * one_pass
