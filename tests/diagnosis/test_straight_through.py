"""Without rounding, operators that round return their input, and integers are left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qtrace.diagnosis.quantization.straight_through import StraightThrough

STEP = 0.25


def values() -> Tensor:
    # Beyond both ends of every grid below.
    return torch.linspace(-100, 100, 60).reshape(4, 15) + 0.01


def round_and_clamp(x: Tensor) -> Tensor:
    return torch.clamp(torch.round(x / STEP), -128, 127) * STEP


def round_with_zero_point(x: Tensor) -> Tensor:
    return ((torch.round(x / STEP) + 3).clamp(0, 255) - 3) * STEP


def zero_point_taken_off_first(x: Tensor) -> Tensor:
    return (torch.clamp((x / STEP).round() - 3, min=-7, max=8) + 3) * STEP


def round_in_place(x: Tensor) -> Tensor:
    return (x / STEP).round_().clamp(-8, 7) * STEP


def fake_by_tensor(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, STEP, 0, -128, 127)


def fake_by_tensor_with_tensors(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, torch.tensor(STEP), torch.tensor(0, dtype=torch.int32), -8, 7)


def fake_by_channel(x: Tensor) -> Tensor:
    steps, zeros = torch.linspace(0.1, 1, 4), torch.zeros(4, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, steps, zeros, 0, -128, 127)


def cast_to_float8(x: Tensor) -> Tensor:
    return (x / STEP).to(torch.float8_e4m3fn).float() * STEP


def round_clamp_and_cast(x: Tensor) -> Tensor:
    return torch.clamp(torch.round(x / STEP), -128, 127).to(torch.int8).to(x.dtype) * STEP


WITH_COUNT: list[tuple[Callable[[Tensor], Tensor], int]] = [
    (round_and_clamp, 2),
    (round_with_zero_point, 2),
    (zero_point_taken_off_first, 2),
    (round_in_place, 2),
    (fake_by_tensor, 1),
    (fake_by_tensor_with_tensors, 1),
    (fake_by_channel, 1),
    (cast_to_float8, 1),
    (round_clamp_and_cast, 3),
]


@pytest.mark.parametrize(("rounds", "count"), WITH_COUNT, ids=lambda value: getattr(value, "__name__", None))
def test_a_rounding_returns_its_input_and_is_counted(rounds: Callable[[Tensor], Tensor], count: int) -> None:
    x = values()
    assert not torch.allclose(rounds(x), x, rtol=1e-3)
    with StraightThrough() as mode:
        found = rounds(x)
    assert torch.allclose(found, x, rtol=1e-6, atol=1e-6)
    assert mode.count == count


@pytest.mark.parametrize("rounds", [rounds for rounds, _ in WITH_COUNT], ids=lambda rounds: rounds.__name__)
def test_values_of_the_input_stay(rounds: Callable[[Tensor], Tensor]) -> None:
    x = values()
    with StraightThrough():
        rounds(x).mul_(2)
    assert torch.equal(x, values())


def test_other_operators_and_integers_are_left_alone() -> None:
    x, codes = values(), torch.arange(-200, 200)
    alone: list[Callable[[], Tensor]] = [
        lambda: x.clamp(-1, 1),
        lambda: x.floor(),
        lambda: x.to(torch.float64),
        lambda: x.to(torch.bfloat16),
        lambda: x.to(torch.int64),
        # A cast alone cuts off, and wraps around.
        lambda: (x / STEP).to(torch.int8),
        lambda: torch.where(x > 1, torch.tensor(1.0), x),
        lambda: codes.clamp(-128, 127),
        lambda: codes.to(torch.int8),
        lambda: codes.round(),
        lambda: torch.relu(x),
    ]
    expected = [made() for made in alone]
    with StraightThrough() as mode:
        found = [made() for made in alone]
    assert mode.count == 0
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "after",
    [
        lambda x: x.clamp(0, 1),
        lambda x: torch.where(torch.arange(15) > 7, torch.tensor(-1e4), x),
    ],
    ids=["clamp", "mask"],
)
def test_what_is_done_to_the_values_of_a_fake_quantizer_stays(after: Callable[[Tensor], Tensor]) -> None:
    x = values()
    with StraightThrough():
        found = after(fake_by_tensor(x))
    assert torch.allclose(found, after(x), rtol=1e-6, atol=1e-6)


def test_a_mask_of_codes_is_no_clamp() -> None:
    x, mask = values(), torch.arange(15) > 7
    with StraightThrough():
        found = torch.where(mask, torch.tensor(-1e4), (x / STEP).round())
    assert bool((found[:, 8:] == -1e4).all())


def test_a_tensor_that_is_rounded_in_place_keeps_no_mark() -> None:
    x = values()
    with StraightThrough():
        x.round_()
    assert not vars(x)


def test_the_mode_ends_with_its_block() -> None:
    with StraightThrough() as mode:
        pass
    assert torch.equal(values().round(), torch.tensor(values().numpy().round()))
    assert mode.count == 0


class Heard:
    """Keeps what a watcher is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def quantizes(
        self,
        values: Tensor,
        scale: Tensor | float,
        zero_point: Tensor | float,
        levels: tuple[float, float],
        axis: int | None,
    ) -> None:
        self.told.append(("quantizes", tuple(values.shape), torch.as_tensor(scale).tolist(), levels, axis))

    def rounds(self) -> None:
        self.told.append(("rounds",))

    def cuts(self, codes: Tensor, cut: Tensor) -> None:
        self.told.append(("cuts", float(codes.abs().max()), float(cut.max())))


def test_a_watcher_is_told_of_each_rounding_with_its_grid() -> None:
    heard = Heard()
    with StraightThrough(heard):
        fake_by_tensor(values())
        fake_by_channel(values())
        round_and_clamp(values())
    first, second, third, fourth = heard.told
    assert first == ("quantizes", (4, 15), STEP, (-128.0, 127.0), None)
    assert second[2] == pytest.approx([0.1, 0.4, 0.7, 1.0])
    assert (*second[:2], *second[3:]) == ("quantizes", (4, 15), (-128.0, 127.0), 0)
    assert third == ("rounds",)
    assert fourth == ("cuts", pytest.approx(100.01 / STEP), 127.0)
