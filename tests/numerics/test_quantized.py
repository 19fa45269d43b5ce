"""Roundings of every common scheme are known as such, and faults in them are not: on weights of chance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qtrace.numerics.quantized import as_matrix, group_sizes, is_rounded, steps

ROWS, WIDTH = 96, 64
# Of Dettmers et al., 2023, to four digits: quantiles of a normal distribution.
NORMAL_LEVELS = torch.tensor(
    [
        *(-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0),
        *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1),
    ]
)


def weight(rows: int = ROWS, width: int = WIDTH, seed: int = 0) -> Tensor:
    values: Tensor = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
    return values


def step_of(values: Tensor, bits: int, group: int) -> Tensor:
    """Return the step of each value, where each group of so many values has one: from its largest."""
    parts = values.reshape(-1, group)
    step: Tensor = parts.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return step.expand(parts.shape).reshape(values.shape)


def symmetric(values: Tensor, bits: int, group: int) -> Tensor:
    step = step_of(values, bits, group)
    return (values / step).round() * step


def affine(values: Tensor, bits: int, group: int) -> Tensor:
    parts = values.reshape(-1, group)
    low, high = parts.amin(1, keepdim=True).clamp(max=0), parts.amax(1, keepdim=True).clamp(min=0)
    step: Tensor = (high - low) / (2**bits - 1)
    zero = (-low / step).round()
    codes = ((parts / step).round() + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * step).reshape(values.shape)


def float8(values: Tensor) -> Tensor:
    scale: Tensor = values.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


def normal_float(values: Tensor, group: int = 64) -> Tensor:
    parts = values.reshape(-1, group)
    scale = parts.abs().amax(1, keepdim=True)
    nearest = (parts.div(scale).unsqueeze(-1) - NORMAL_LEVELS).abs().argmin(-1)
    return (NORMAL_LEVELS[nearest] * scale).reshape(values.shape)


def compensated(values: Tensor, bits: int, group: int) -> Tensor:
    """Return a weight rounded column by column, the error of each made up for by those behind it: GPTQ."""
    made = torch.Generator().manual_seed(1)
    mixed = torch.eye(WIDTH) + 0.3 * torch.randn(WIDTH, WIDTH, generator=made) / WIDTH**0.5
    inputs = (torch.randn(8 * WIDTH, WIDTH, generator=made) @ mixed).double()
    upper = torch.linalg.cholesky(torch.linalg.inv(inputs.t() @ inputs), upper=True)
    left, found, step = values.double(), torch.zeros_like(values, dtype=torch.float64), torch.tensor(0.0)
    left = left.clone()
    for column in range(values.shape[1]):
        if column % group == 0:
            step = left[:, column : column + group].abs().amax(1) / (2 ** (bits - 1) - 1)
        code = (left[:, column] / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        found[:, column] = code * step
        error = (left[:, column] - found[:, column]) / upper[column, column]
        left[:, column + 1 :] -= error.unsqueeze(1) * upper[column, column + 1 :]
    return found.float()


SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    f"{rounds.__name__}-{bits}-{group}": partial(rounds, bits=bits, group=group)
    for rounds, groups in (
        (symmetric, (ROWS * WIDTH, WIDTH, 32)),
        (affine, (ROWS * WIDTH, WIDTH, 32)),
        (compensated, (WIDTH, 32)),
    )
    for bits in (8, 4)
    for group in groups
}
SCHEMES |= {"float8": float8, "normal_float": normal_float}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounded_weights_are_known_in_whatever_dtype_they_are_stored(scheme: str, stored: torch.dtype) -> None:
    mine = weight()
    theirs = SCHEMES[scheme](mine)
    assert not torch.equal(mine, theirs)
    assert is_rounded(mine, theirs.to(stored).float())


@pytest.mark.parametrize("seed", range(5))
def test_scales_that_were_rounded_after_the_codes_were_made_are_those_of_a_rounding(seed: int) -> None:
    values = weight(seed=seed)
    rounded = normal_float(values)
    # GIVEN scales that are up to three per cent off
    off = 0.03 * (2 * torch.rand(values.numel() // 64, 1, generator=torch.Generator().manual_seed(seed)) - 1)
    stored = rounded.reshape(-1, 64) * (1 + off)
    assert is_rounded(values, stored.reshape(values.shape))


def test_the_compensated_rounding_is_not_the_nearest() -> None:
    mine = weight()
    theirs = compensated(mine, 4, WIDTH)
    step = steps(as_matrix(theirs)).unsqueeze(1)
    assert float(((theirs - mine).abs() > 0.51 * step).double().mean()) > 0.05


@pytest.mark.parametrize("group", [WIDTH, 32])
def test_a_weight_of_experts_is_rounded_row_by_row(group: int) -> None:
    mine = torch.stack([weight(48, seed=seed) for seed in range(3)])
    assert is_rounded(mine, symmetric(mine, 4, group))
    assert as_matrix(mine).shape == (3 * 48, WIDTH)
    other = symmetric(mine, 4, group)
    other[1] = other[0]
    assert not is_rounded(mine, other)


def test_a_convolution_is_rounded_by_its_output_channels() -> None:
    mine = weight(32, 72).reshape(32, 8, 3, 3)
    assert as_matrix(mine).shape == (32, 72)
    rounded = symmetric(mine.flatten(1), 8, 72).reshape(mine.shape)
    assert is_rounded(mine, rounded)
    assert not is_rounded(mine, rounded.transpose(2, 3))


@pytest.mark.parametrize("seed", range(4))
def test_a_convolution_along_one_axis_is_rounded_by_its_output_channels(seed: int) -> None:
    mine = weight(32, 12, seed).reshape(32, 4, 3)
    assert as_matrix(mine).shape == (32, 12)
    rounded = symmetric(mine.flatten(1), 8, 12).reshape(mine.shape)
    assert is_rounded(mine, rounded)
    assert not is_rounded(mine, rounded.flip(2))


def faulty(change: Callable[[Tensor, Tensor], Tensor | None], bits: int, group: int) -> bool:
    """Return whether a weight counts as rounded after `change`, which takes it and its steps."""
    mine = weight()
    theirs = symmetric(mine, bits, group)
    changed = change(theirs, step_of(mine, bits, group))
    return is_rounded(mine, theirs if changed is None else changed)


def one_row_larger(values: Tensor, step: Tensor) -> None:
    values[5] *= 1.5


def one_row_negated(values: Tensor, step: Tensor) -> None:
    values[3] *= -1


def two_rows_exchanged(values: Tensor, step: Tensor) -> None:
    values[[4, 9]] = values[[9, 4]]


def one_column_zero(values: Tensor, step: Tensor) -> None:
    values[:, 6] = 0


def codes_off_by_one(values: Tensor, step: Tensor) -> Tensor:
    return values + step


def one_row_off_by_one(values: Tensor, step: Tensor) -> None:
    values[3] += step[3]


def all_larger(values: Tensor, step: Tensor) -> Tensor:
    return values * 1.05


def a_block_lost(values: Tensor, step: Tensor) -> None:
    values[16:32, 16:32] = 0


def a_block_of_rows_unlike(values: Tensor, step: Tensor) -> None:
    noise = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(3))
    values[16:24] += 3 * step[16:24] * noise


def not_a_number(values: Tensor, step: Tensor) -> None:
    values[2, 3] = torch.nan


FAULTS = [
    one_row_larger,
    one_row_negated,
    two_rows_exchanged,
    one_column_zero,
    codes_off_by_one,
    one_row_off_by_one,
    all_larger,
    a_block_lost,
    a_block_of_rows_unlike,
    not_a_number,
]


@pytest.mark.parametrize("group", [WIDTH, 32])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_what_is_wrong_beyond_rounding_is_no_rounding(
    change: Callable[[Tensor, Tensor], Tensor | None], bits: int, group: int
) -> None:
    assert faulty(lambda values, step: None, bits, group)
    assert not faulty(change, bits, group)


@pytest.mark.parametrize("bits", [8, 4])
def test_one_group_that_is_off_by_one_step_is_no_rounding(bits: int) -> None:
    mine = weight(32, 256)
    theirs = symmetric(mine, bits, 128)
    assert is_rounded(mine, theirs)
    theirs[7, :128] += step_of(mine, bits, 128)[7, :128]
    assert not is_rounded(mine, theirs)


def test_a_zeroed_row_is_no_rounding_at_eight_bits() -> None:
    mine = weight()
    theirs = symmetric(mine, 8, WIDTH)
    theirs[6] = 0
    assert not is_rounded(mine, theirs)


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_along_the_wrong_axis_are_no_rounding(bits: int) -> None:
    # GIVEN a square weight, whose scales fit along both axes
    mine = weight(64, 64) * torch.linspace(0.2, 2, 64).unsqueeze(1)
    step = step_of(mine, bits, 64)
    codes = (mine / step).round()
    assert is_rounded(mine, codes * step)
    assert not is_rounded(mine, codes * step.t())


def test_a_weight_is_its_own_rounding() -> None:
    mine = weight()
    assert is_rounded(mine, mine.clone())
    assert is_rounded(mine, mine * (1 + 1e-7))


def test_other_shapes_vectors_and_nothing_are_no_rounding() -> None:
    mine = weight()
    assert not is_rounded(mine, mine[:, :32])
    assert not is_rounded(mine, mine.reshape(WIDTH, ROWS))
    assert not is_rounded(mine[0], mine[0])
    assert not is_rounded(mine[:0], mine[:0])


def test_another_weight_is_no_rounding() -> None:
    assert not is_rounded(weight(), weight(seed=1))
    assert not is_rounded(weight(), symmetric(weight(seed=1), 8, WIDTH))
    assert not is_rounded(weight(), torch.zeros(ROWS, WIDTH))
    assert not is_rounded(weight(), symmetric(-weight(), 8, WIDTH))


def test_codes_need_no_grid_that_is_seen() -> None:
    # GIVEN a weight that was rotated, rounded and rotated back, as some schemes do to spread outliers
    mine = weight(128, 64)
    turn = torch.linalg.qr(weight(64, 64, seed=2)).Q
    theirs = symmetric(mine @ turn, 8, 64) @ turn.t()
    assert is_rounded(mine, theirs, from_codes=True)
    assert not is_rounded(mine, theirs)
    theirs[3] *= -1
    assert not is_rounded(mine, theirs, from_codes=True)


def test_noise_of_the_same_size_is_no_rounding() -> None:
    mine = weight()
    noise = torch.randn(mine.shape, generator=torch.Generator().manual_seed(5))
    assert not is_rounded(mine, mine + noise * step_of(mine, 8, WIDTH) / 12**0.5)


def test_rows_that_are_not_read_in_full_are_read_in_part() -> None:
    # GIVEN so many values that only some rows are judged in full, and the wrong one, an odd row, is not among them
    mine = weight(1024, 512)
    for change in (one_row_negated, one_row_larger):
        theirs = symmetric(mine, 8, 512)
        assert is_rounded(mine, theirs)
        change(theirs, theirs)
        assert not is_rounded(mine, theirs)


@settings(max_examples=25, deadline=None)
@given(
    rounds=st.sampled_from([symmetric, affine]),
    bits=st.sampled_from([3, 4, 6, 8]),
    group=st.sampled_from([ROWS * WIDTH, WIDTH, 32]),
    seed=st.integers(0, 10**6),
    gain=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_a_rounding_is_known_at_each_size_and_no_permutation_of_it_is(
    rounds: Callable[[Tensor, int, int], Tensor], bits: int, group: int, seed: int, gain: float
) -> None:
    mine = weight(seed=seed) * gain
    theirs = rounds(mine, bits, group)
    assert is_rounded(mine, theirs)
    assert not is_rounded(mine, theirs.roll(1, 0))
    assert not is_rounded(mine, theirs.roll(1, 1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(3, 8))
def test_the_step_of_a_row_is_the_least_distance_of_its_levels(seed: int, bits: int) -> None:
    rounded = symmetric(weight(8, seed=seed), bits, WIDTH)
    expected = [np.diff(np.unique(np.asarray(row.double().numpy()).round(7))).min() for row in rounded]
    assert steps(as_matrix(rounded)).tolist() == pytest.approx(expected, rel=1e-3)


def test_the_step_of_equal_values_is_infinite() -> None:
    assert steps(torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.5, 3.0]]).double()).tolist() == [float("inf"), 0.5]


@settings(max_examples=50, deadline=None)
@given(row=st.integers(1, 5000))
def test_the_sizes_of_groups_divide_a_row_and_fall(row: int) -> None:
    sizes = group_sizes(row)
    assert sizes[0] == row
    assert all(row % size == 0 for size in sizes)
    assert sizes == sorted(set(sizes), reverse=True)


def test_the_sizes_of_groups_are_the_usual_ones() -> None:
    assert group_sizes(64) == [64, 32, 16, 8]
    assert group_sizes(96) == [96, 32, 16, 8]
    assert group_sizes(7) == [7]
