"""Properties that hold for any pair of tensors."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.numerics import measure
from qtrace.report.records import Status
from tests.numerics.test_oracle import check, near, oracle

QUICK = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 9000)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
scales = st.floats(1e-6, 1e6)


def draw(seed: int, n: int, noise: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(n, generator=generator, dtype=torch.float64)
    return reference, reference + noise * torch.randn(n, generator=generator, dtype=torch.float64)


@QUICK
@given(seeds, sizes, dtypes)
def test_nothing_differs_from_itself(seed: int, n: int, dtype: torch.dtype) -> None:
    x = draw(seed, n)[0].to(dtype)
    found = measure(x, x.clone()).result()
    assert (found.mean, found.max, found.stddev, found.peir, found.rel_l2) == (0, 0, 0, 0, 0)
    assert found.status is Status.COMPARED


@QUICK
@given(seeds, sizes, dtypes, scales, st.floats(1e-4, 10))
def test_agrees_with_float64(seed: int, n: int, dtype: torch.dtype, scale: float, noise: float) -> None:
    reference, candidate = (scale * x for x in draw(seed, n, noise))
    if dtype is torch.float16:
        reference, candidate = reference / scale, candidate / scale
    reference, candidate = reference.to(dtype), candidate.to(dtype)
    check(measure(reference, candidate).result(), oracle(reference, candidate))


@QUICK
@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2), min_size=1))
def test_agrees_with_float64_on_any_values(pairs: list[tuple[float, float]]) -> None:
    reference, candidate = torch.tensor(pairs).repeat(1 + 2500 // len(pairs), 1).T
    check(measure(reference, candidate).result(), oracle(reference, candidate))


@QUICK
@given(seeds, st.integers(2, 9000), st.floats(0.01, 100), st.floats(-100, 100))
def test_peir_ignores_a_common_gain_and_shift(seed: int, n: int, gain: float, shift: float) -> None:
    reference, candidate = draw(seed, n)
    before = measure(reference, candidate).result().peir
    after = measure(gain * reference + shift, gain * candidate + shift).result().peir
    assert after == near("peir", before)


@QUICK
@given(seeds, sizes)
def test_the_sides_may_be_exchanged_where_no_side_is_the_measure(seed: int, n: int) -> None:
    reference, candidate = (x.float() for x in draw(seed, n))
    one, other = measure(reference, candidate).result(), measure(candidate, reference).result()
    for name in ("mean", "min", "max", "stddev", "cosine"):
        assert getattr(one, name) == near(name, getattr(other, name)), name


@QUICK
@given(seeds, sizes)
def test_order_does_not_matter(seed: int, n: int) -> None:
    reference, candidate = (x.float() for x in draw(seed, n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    one, other = measure(reference, candidate).result(), measure(reference[order], candidate[order]).result()
    for name in ("mean", "min", "max", "stddev", "peir", "sqnr_db", "cosine", "rel_l2"):
        assert getattr(one, name) == near(name, getattr(other, name)), name


@QUICK
@given(seeds, st.integers(1, 200))
def test_repeating_a_pair_changes_nothing(seed: int, times: int) -> None:
    reference, candidate = (x.float() for x in draw(seed, 50))
    one = measure(reference, candidate).result()
    other = measure(reference.repeat(times), candidate.repeat(times)).result()
    for name in ("mean", "min", "max", "stddev", "peir", "sqnr_db", "cosine", "rel_l2"):
        assert getattr(one, name) == near(name, getattr(other, name)), name
