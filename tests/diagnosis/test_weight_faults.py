"""Each way in which a weight may be wrong has its sentence, whatever it was rounded to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from qtrace.diagnosis.quantization.weight_faults import bias_fault, weight_fault

ROWS, WIDTH = 96, 64


def chance(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step_of(weight: Tensor, bits: int, group: int = WIDTH) -> Tensor:
    parts = weight.reshape(-1, group)
    step: Tensor = parts.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return step.expand(parts.shape).reshape(weight.shape)


def rounded(weight: Tensor, bits: int, group: int = WIDTH) -> Tensor:
    step = step_of(weight, bits, group)
    return (weight / step).round() * step


def said(change: Callable[[Tensor], Tensor], bits: int, rows: int = ROWS) -> str:
    """Return what is said of a rounded weight that went through `change`."""
    weight = chance(rows, WIDTH) / 8
    return weight_fault(weight, change(rounded(weight, bits)))


BITS = pytest.mark.parametrize("bits", [8, 4])


@BITS
def test_values_that_are_not_finite_are_counted_on_both_sides(bits: int) -> None:
    def change(weight: Tensor) -> Tensor:
        weight[1, :3] = torch.inf
        weight[2, 0] = torch.nan
        return weight

    assert said(change, bits) == "holds 4 values that are not finite, against 0 in the reference"


@BITS
def test_zeros_everywhere(bits: int) -> None:
    assert said(torch.zeros_like, bits) == "is zero everywhere"


@BITS
def test_rows_and_columns_in_another_order_are_shown_with_their_origin(bits: int) -> None:
    expected = "has the reference's {} in another order (0 is {}, 1 is {}, 2 is {}, …)"
    assert said(lambda weight: weight.flip(0), bits) == expected.format("rows", 95, 94, 93)
    assert said(lambda weight: weight.flip(1), bits) == expected.format("columns", 63, 62, 61)


@BITS
def test_a_square_weight_may_be_transposed(bits: int) -> None:
    assert said(lambda weight: weight.t(), bits, rows=WIDTH) == "is the reference's transposed"


@BITS
@pytest.mark.parametrize("group", [WIDTH, 32])
@pytest.mark.parametrize(
    ("shift", "sentence"),
    [
        (1, "is one step too high in each {}: a zero point off by one"),
        (-1, "is one step too low in each {}: a zero point off by one"),
        (8, "is 8 steps too high in each {}: a zero point off by 8"),
        (-3, "is 3 steps too low in each {}: a zero point off by 3"),
    ],
)
def test_a_zero_point_is_told_by_how_many_steps_it_is_off(bits: int, group: int, shift: int, sentence: str) -> None:
    weight = chance(ROWS, WIDTH) / 8
    candidate = rounded(weight, bits, group) + shift * step_of(weight, bits, group)
    assert weight_fault(weight, candidate) == sentence.format("row" if group == WIDTH else f"group of {group}")


@BITS
def test_a_shift_by_no_whole_step_is_told_without_a_number(bits: int) -> None:
    weight = chance(ROWS, WIDTH) / 8
    candidate = rounded(weight, bits) + 1.5 * step_of(weight, bits)
    assert weight_fault(weight, candidate) == "is shifted in each row, as by another zero point"


@BITS
def test_single_values_are_placed(bits: int) -> None:
    def change(weight: Tensor) -> Tensor:
        weight[3, 4] += 2
        weight[5, 6] -= 3
        return weight

    expected = f"differs at 2 of {ROWS * WIDTH} values by more than at the others ([3, 4], [5, 6], …)"
    assert said(change, bits) == expected


@BITS
def test_single_rows_are_named(bits: int) -> None:
    def change(weight: Tensor) -> Tensor:
        weight[2:14] = chance(12, WIDTH, seed=5) / 4
        return weight

    assert said(change, bits) == f"differs beyond rounding in 12 of {ROWS} rows (2, 3, 4, …)"


@BITS
@pytest.mark.parametrize("rank", [1, 3])
def test_an_adapter_is_told_by_its_rank(bits: int, rank: int) -> None:
    adapter = torch.linalg.qr(chance(ROWS, rank, seed=1)).Q @ torch.linalg.qr(chance(WIDTH, rank, seed=2)).Q.t()
    expected = f"differs by a matrix of rank {rank}, as by an adapter that was not merged, or merged with another scale"
    assert said(lambda weight: weight + 8 * adapter, bits) == expected


@BITS
@pytest.mark.parametrize("group", [WIDTH, 32])
def test_other_scales_are_told_with_their_range(bits: int, group: int) -> None:
    weight = chance(ROWS, WIDTH) / 8
    factors = torch.linspace(0.5, 1.5, weight.numel() // group)[torch.randperm(weight.numel() // group)]
    parts = rounded(weight, bits, group).reshape(-1, group) * factors.unsqueeze(1)
    found = weight_fault(weight, parts.reshape(weight.shape))
    low, high = (float(factors.quantile(share)) for share in (0.05, 0.95))
    where, _, numbers = found.removesuffix(": by other scales").partition(", ")
    assert where == f"is scaled by another factor in each {'row' if group == WIDTH else f'group of {group}'}"
    assert [float(number) for number in numbers.split(" to ")] == pytest.approx([low, high], rel=0.05)


@BITS
def test_a_rotation_is_told_by_the_side_that_it_turns(bits: int) -> None:
    weight = chance(ROWS, WIDTH) / 8
    of_input = torch.linalg.qr(chance(WIDTH, WIDTH, seed=1)).Q
    of_output = torch.linalg.qr(chance(ROWS, ROWS, seed=1)).Q
    expected = "is the reference's turned by a rotation of its {}, which is not undone"
    assert weight_fault(weight, rounded(weight @ of_input, bits)) == expected.format("input")
    assert weight_fault(weight, rounded(of_output @ weight, bits)) == expected.format("output")


def test_what_fits_no_hypothesis_is_measured() -> None:
    weight, other = chance(ROWS, WIDTH), chance(ROWS, WIDTH, seed=1)
    size = float((other.double() - weight.double()).norm() / weight.double().norm())
    assert weight_fault(weight, other) == (
        f"differs by {size:.2g} times its own size, which is no rounding of the reference's"
    )
    follows = weight_fault(weight, weight + other)
    cosine = float(torch.nn.functional.cosine_similarity(weight.flatten(), (weight + other).flatten(), dim=0))
    assert f"it follows the reference's (correlation {cosine:.2f})" in follows


def test_a_weight_of_experts_is_read_by_rows() -> None:
    weight = chance(3, 32, WIDTH) / 8
    assert weight_fault(weight, rounded(weight.reshape(-1, WIDTH), 8).flip(0).reshape(weight.shape)) == (
        "has the reference's rows in another order (0 is 95, 1 is 94, 2 is 93, …)"
    )


def test_a_bias_is_lost_added_scaled_or_another() -> None:
    bias = chance(16)
    none = torch.zeros(16)
    assert bias_fault(bias, none) == "adds no bias, the reference's is not zero"
    assert bias_fault(None, bias) == "adds a bias, the reference has none"
    assert bias_fault(none, bias) == "adds a bias, the reference has none"
    assert bias_fault(bias, 2 * bias) == "adds 2 times the reference's bias"
    assert bias_fault(bias, -0.25 * bias) == "adds -0.25 times the reference's bias"
    assert bias_fault(bias, chance(16, seed=1)) == "adds another bias than the reference"


def test_a_bias_that_is_the_reference_up_to_rounding_is_no_fault() -> None:
    bias = chance(16)
    assert bias_fault(bias, bias) is None
    assert bias_fault(bias, bias.bfloat16()) is None
    assert bias_fault(None, torch.zeros(16)) is None
    assert bias_fault(torch.zeros(16), torch.zeros(16)) is None


def test_values_that_are_cut_off_are_counted_and_told_with_both_ends() -> None:
    given = chance(ROWS, WIDTH) / 8
    end = float(given.abs().max()) / 2
    beyond = int((np.abs(given.numpy()) > 1.05 * end).sum())
    assert weight_fault(given, given.clamp(-end, end)) == (
        f"is cut off: {beyond} values lie beyond the ends, at most {end:.3g}, the reference's reach {2 * end:.3g}"
    )
    ends = given.abs().amax(1, keepdim=True) / torch.linspace(1.6, 2.4, len(given)).unsqueeze(1)
    words = weight_fault(given, torch.maximum(torch.minimum(given, ends), -ends))
    assert words.startswith("is cut off: ")
    assert " values lie beyond the ends in their rows, at most " in words
