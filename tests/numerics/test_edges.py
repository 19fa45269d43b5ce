"""Edges by hand: what exactly comes out where a ratio has no meaning or a number no room."""

from __future__ import annotations

import math

import pytest
import torch

from qtrace.numerics import NoValues, measure
from qtrace.report.records import Statistics, Status

NAN, INF = math.nan, math.inf
COMPARED, CONSTANT, NON_FINITE = Status.COMPARED, Status.CONSTANT_REFERENCE, Status.NON_FINITE


def same(found: Statistics, **expected: object) -> None:
    for name, value in expected.items():
        got = getattr(found, name)
        assert got == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), name


def test_by_hand() -> None:
    reference, candidate = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 4.0, 3.0])
    same(
        measure(reference, candidate).result(),
        status=COMPARED, mean=1.0, min=0.0, max=2.0, stddev=math.sqrt(0.5), peir=0.5,
        sqnr_db=10 * math.log10(3.5), cosine=22 / math.sqrt(21 * 29), rel_l2=math.sqrt(6 / 21),
        mismatch=None, non_finite=None, reference_min=0.0, reference_max=4.0,
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 4, 5000])
def test_equal(n: int) -> None:
    x = torch.arange(1.0, n + 1)
    same(
        measure(x, x.clone()).result(),
        status=COMPARED, mean=0.0, min=0.0, max=0.0, stddev=0.0, peir=0.0, sqnr_db=None, cosine=1.0, rel_l2=0.0,
        mismatch=None, non_finite=None, reference_min=1.0, reference_max=float(n),
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 4, 5000])
def test_equal_zeros_have_no_angle(n: int) -> None:
    x = torch.zeros(n)
    same(measure(x, -x).result(), status=COMPARED, peir=0.0, max=0.0, rel_l2=0.0, cosine=None, sqnr_db=None)


@pytest.mark.parametrize("n", [1, 4, 5000])
def test_constant_reference_that_is_not_met(n: int) -> None:
    found = measure(torch.full((n,), 2.0), torch.full((n,), 3.0)).result()
    same(found, status=CONSTANT, peir=None, mean=1.0, max=1.0, stddev=0.0, rel_l2=0.5, cosine=1.0)
    same(found, sqnr_db=10 * math.log10(4))


@pytest.mark.parametrize("n", [1, 4, 5000])
def test_zero_reference_that_is_not_met(n: int) -> None:
    found = measure(torch.zeros(n), torch.ones(n)).result()
    same(found, status=CONSTANT, peir=None, max=1.0, rel_l2=None, cosine=None, sqnr_db=None)


@pytest.mark.parametrize("n", [2, 5000])
def test_zero_candidate_is_all_noise(n: int) -> None:
    reference = torch.arange(n) % 2 * 4.0
    same(measure(reference, torch.zeros(n)).result(), peir=1.0, rel_l2=1.0, sqnr_db=0.0, cosine=None, mean=2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_empty_compares_nothing(dtype: torch.dtype) -> None:
    empty = torch.empty(2, 0, 3, dtype=dtype)
    for metrics in ("all", "seed"):
        assert measure(empty, empty, metrics=metrics).result() == Statistics(status=COMPARED)


def test_zero_dimensional() -> None:
    same(measure(torch.tensor(2.0), torch.tensor(2.0)).result(), status=COMPARED, peir=0.0)
    same(measure(torch.tensor(2.0), torch.tensor(1.0)).result(), status=CONSTANT, peir=None, max=1.0)


@pytest.mark.parametrize("filler", [0, 6000])
@pytest.mark.parametrize(
    ("reference", "candidate", "counts", "largest"),
    [
        ([NAN, 1.0, 2.0], [NAN, 1.0, 2.0], (1, 1), 0.0),
        ([INF, 1.0, 2.0], [INF, 1.0, 2.0], (1, 1), 0.0),
        ([INF, 1.0, 2.0], [-INF, 1.0, 3.0], (1, 1), 1.0),
        ([NAN, 1.0, 2.0], [0.0, 1.0, 2.5], (1, 0), 0.5),
        ([0.0, 1.0, 2.0], [NAN, INF, 2.5], (0, 2), 0.5),
        ([NAN, 1.0, 2.0], [0.0, INF, 2.5], (1, 1), 0.5),
    ],
)
def test_non_finite_values(
    reference: list[float], candidate: list[float], counts: tuple[int, int], largest: float, filler: int
) -> None:
    tail = torch.arange(float(filler)) % 3
    found = measure(torch.cat((torch.tensor(reference), tail)), torch.cat((torch.tensor(candidate), tail))).result()
    same(found, status=NON_FINITE, max=largest)
    assert found.non_finite == counts
    assert found.mean is not None
    assert found.reference_max == 2.0


@pytest.mark.parametrize("n", [1, 3, 5000])
def test_no_finite_pair(n: int) -> None:
    found = measure(torch.full((n,), NAN), torch.ones(n)).result()
    assert found == Statistics(status=NON_FINITE, non_finite=(n, 0))


def test_non_finite_in_float64_and_half() -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        reference, candidate = torch.ones(4000, dtype=dtype), torch.ones(4000, dtype=dtype)
        reference[5], candidate[3999], candidate[0] = NAN, -INF, 3
        found = measure(reference, candidate).result()
        same(found, status=NON_FINITE, max=2.0, peir=None, reference_min=1.0)
        assert found.non_finite == (1, 1)


def test_uint8_does_not_wrap() -> None:
    for n in (1, 4000):
        reference = torch.tensor([0, 200], dtype=torch.uint8).repeat(n)
        found = measure(reference, torch.full_like(reference, 255)).result()
        same(found, min=55.0, max=255.0, mean=155.0, mismatch=1.0, peir=255 / 200)


def test_bools() -> None:
    for n in (1, 4000):
        reference = torch.tensor([True, False, True, True]).repeat(n)
        candidate = torch.tensor([True, True, True, False]).repeat(n)
        same(measure(reference, candidate).result(), mismatch=0.5, mean=0.5, max=1.0, peir=1.0)
        same(measure(reference, candidate.float()).result(), mismatch=0.5)
        same(measure(reference, reference.clone()).result(), mismatch=0.0, peir=0.0)


def test_integers_beyond_float64() -> None:
    big = 2**53
    found = measure(torch.tensor([big, big + 1]), torch.tensor([big, big])).result()
    same(found, status=COMPARED, mismatch=0.5, max=1.0, mean=0.5, peir=1.0)
    found = measure(torch.tensor([big + 1, big + 1]), torch.tensor([big, big])).result()
    same(found, status=CONSTANT, mismatch=1.0, max=1.0, peir=None)
    # Not exact as integers, for the difference is beyond int64, but not wrapped either.
    found = measure(torch.tensor([2**62, 0]), torch.tensor([-(2**63), 0])).result()
    same(found, mismatch=0.5, max=1.5 * 2.0**63, reference_max=2.0**62)


def test_unsigned_64_bit_integers() -> None:
    top = torch.tensor([2**64 - 1, 0], dtype=torch.uint64)
    found = measure(top, torch.tensor([2**64 - 2, 0], dtype=torch.uint64)).result()
    same(found, mismatch=0.5, max=1.0, reference_min=0.0, reference_max=2.0**64, peir=1 / (2**64 - 1))
    same(measure(top, torch.tensor([5, 0])).result(), mismatch=0.5, max=2.0**64, peir=1.0)


def test_mismatch_counts_what_is_not_finite() -> None:
    found = measure(torch.tensor([1, 2, 3, 4]), torch.tensor([1.0, NAN, INF, 5.0])).result()
    same(found, status=NON_FINITE, mismatch=0.75, max=1.0)
    assert found.non_finite == (0, 2)


def test_wide_integers_beside_non_finite_values() -> None:
    found = measure(torch.tensor([2**53 + 1, 7, 9]), torch.tensor([NAN, 7.0, 8.0])).result()
    same(found, reference_min=7.0, reference_max=9.0, peir=0.5)


HUGE = torch.finfo(torch.float64).max


@pytest.mark.parametrize("n", [1, 3000])
def test_float64_mask_fills(n: int) -> None:
    mask = torch.tensor([0.0, -HUGE], dtype=torch.float64).repeat(n)
    same(
        measure(mask, torch.zeros_like(mask)).result(),
        status=COMPARED, max=HUGE, mean=HUGE / 2, stddev=HUGE / 2, peir=1.0, rel_l2=1.0, sqnr_db=0.0, cosine=None,
    )  # fmt: skip
    # The difference of these is beyond float64: the ratios are there nevertheless.
    same(
        measure(mask, -mask).result(),
        status=COMPARED, max=None, min=0.0, mean=HUGE, peir=2.0, rel_l2=2.0, cosine=-1.0,
        sqnr_db=-20 * math.log10(2),
    )  # fmt: skip
    wide = torch.tensor([HUGE, -HUGE], dtype=torch.float64).repeat(n)
    same(measure(wide, torch.zeros_like(wide)).result(), peir=0.5, rel_l2=1.0, max=HUGE, stddev=0.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_float64_at_the_ends_of_its_range(scale: float) -> None:
    reference = scale * torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    candidate = scale * torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
    found = measure(reference, candidate).result()
    same(found, peir=0.25, rel_l2=math.sqrt(1 / 39), cosine=42 / math.sqrt(39 * 46), sqnr_db=10 * math.log10(39))
    same(found, max=scale, mean=scale / 4, stddev=scale * math.sqrt(3) / 4)


def test_float64_noise_far_below_the_values() -> None:
    reference = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    candidate = reference + torch.tensor([0.0, 1e-200, 0.0, 0.0], dtype=torch.float64)
    found = measure(reference, candidate).result()
    same(found, max=1e-200, stddev=1e-200 * math.sqrt(3) / 4, rel_l2=1e-200, sqnr_db=4000.0, peir=1e-200)


def test_complex_tensors_count_as_pairs() -> None:
    reference = torch.tensor([1 + 2j, 3 + 0j])
    same(measure(reference, reference.conj()).result(), max=4.0, mean=1.0, peir=4 / 3)
    same(measure(reference, reference.real).result(), max=2.0, mean=0.5)
    same(measure(reference.real, reference).result(), max=2.0, mean=0.5)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="reference") as caught:
        measure(torch.zeros(2, 3), torch.zeros(3))
    assert str(caught.value) == (
        "reference has shape [2, 3] and candidate [3]; measure takes tensors of one shape, "
        "so bring them into one layout first"
    )


def test_meta_tensors_are_refused() -> None:
    with pytest.raises(NoValues, match="is on the meta device"):
        measure(torch.zeros(2), torch.zeros(2, device="meta"))
