"""`measure` against numpy in float64: hard values, dtypes, sizes about the block's, layouts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qtrace.numerics import float64, kernel, measure
from tests.numerics.test_oracle import check, oracle

N = 6 * 1024 + 64
Pair = tuple[torch.Tensor, torch.Tensor]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(noise: float = 1e-3, n: int = N) -> Pair:
    reference = normal(n).float()
    return reference, reference + (noise * normal(n)).float()


def mask(*fills: float) -> Pair:
    blocked = torch.rand(N) < 0.4
    reference, candidate = (torch.zeros(N).masked_fill(blocked, fill) for fill in fills)
    return reference, candidate


def two_values() -> Pair:
    reference = normal(N).float()
    return reference, reference + torch.where(torch.rand(N) < 0.5, 0.0, 0.125)


LOWEST = torch.finfo(torch.float32).min
HARD: dict[str, Callable[[], Pair]] = {
    "close": close,
    "very close": lambda: close(1e-6),
    "unrelated": lambda: (normal(N).float(), normal(N).float()),
    "opposite": lambda: (torch.linspace(-1, 1, N), -torch.linspace(-1, 1, N)),
    "gain": lambda: (x := normal(N).float(), 0.01 * x + 0.003 * normal(N).float()),
    "nearly twice": lambda: (x := normal(N).float(), 1.9999 * x + 1e-3 * normal(N).float()),
    "offset with little noise": lambda: (x := normal(N).float(), x + (0.1 + 1e-5 * normal(N)).float()),
    "offset with some noise": lambda: (x := normal(N).float(), x + (0.1 + 1e-3 * normal(N)).float()),
    "offset alone": lambda: (x := torch.randint(-9, 9, (N,)).float(), x + 0.5),
    "large offset in the values": lambda: (x := 1e6 + normal(N).float(), x + normal(N).float()),
    "negative values": lambda: (x := -3 - torch.rand(N), x - 1e-4 * torch.rand(N)),
    "heavy tails": lambda: (x := torch.exp(3 * normal(N)).float(), x * (1 + 1e-3 * normal(N)).float()),
    "constant reference": lambda: (torch.full((N,), 0.1), 0.1 + 0.01 * normal(N).float()),
    "zero reference": lambda: (torch.zeros(N), normal(N).float()),
    "zero candidate": lambda: (normal(N).float(), torch.zeros(N)),
    "two values": two_values,
    "one element differs": lambda: (x := normal(N).float(), x.index_add(0, torch.tensor([7]), torch.ones(1))),
    "mask against nothing": lambda: mask(LOWEST, 0.0),
    "mask against another fill": lambda: mask(LOWEST, -120.0),
    "mask against its opposite": lambda: mask(LOWEST, -LOWEST),
    "denormals": lambda: (x := 1e-40 * torch.rand(N), x + 1e-42 * torch.rand(N)),
    "squares that vanish": lambda: (x := 1e-25 * torch.rand(N), x + 1e-28 * torch.rand(N)),
    "noise whose squares lose digits": lambda: (x := (1e-17 * normal(N)).float(), x + (3e-22 * normal(N)).float()),
    "noise whose squares vanish": lambda: (x := torch.zeros(N).index_fill(0, torch.tensor([3]), 1.0), x + 1e-24),
    "squares that overflow": lambda: (x := 1e25 * torch.randn(N), x + 1e20 * torch.randn(N)),
    "equal": lambda: (x := normal(N).float(), x.clone()),
    "equal zeros": lambda: (torch.zeros(N), torch.zeros(N)),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_values(name: str) -> None:
    reference, candidate = HARD[name]()
    check(measure(reference, candidate).result(), oracle(reference, candidate))


@pytest.mark.parametrize("name", HARD)
def test_the_fast_path_is_right_or_gives_up(name: str) -> None:
    reference, candidate = HARD[name]()
    gave_up = kernel.sums(reference, candidate, "all") is None
    ordinary = {"close", "very close", "heavy tails", "negative values", "one element differs", "two values"}
    if name in ordinary | {"equal", "equal zeros"}:
        assert not gave_up
    unsafe = ("mask", "vanish", "digits", "offset with", "offset alone", "unrelated", "gain", "zero ")
    if name.startswith(unsafe) or "squares" in name:
        assert gave_up


@pytest.mark.parametrize("name", HARD)
def test_seed_metrics_are_the_same_five(name: str) -> None:
    reference, candidate = HARD[name]()
    found = measure(reference, candidate, metrics="seed").result()
    five = ("mean", "min", "max", "stddev", "peir", "reference_min", "reference_max")
    check(found, {k: v for k, v in oracle(reference, candidate).items() if k in five})
    assert (found.sqnr_db, found.cosine, found.rel_l2) == (None, None, None)


@pytest.mark.parametrize("name", HARD)
def test_the_range_alone_is_the_same_range(name: str) -> None:
    reference, candidate = HARD[name]()
    found = measure(reference, candidate, metrics="range").result()
    extremes = ("min", "max", "peir", "reference_min", "reference_max")
    check(found, {k: v for k, v in oracle(reference, candidate).items() if k in extremes})
    if found.max:
        assert (found.mean, found.stddev, found.rel_l2) == (None, None, None)


@pytest.mark.parametrize("n", [1 << 14, 64 * 8191])
def test_equal_roundings_do_not_pile_up(n: int) -> None:
    # GIVEN a reference of which every square is rounded the same way
    reference = torch.full((n,), 0.1)
    candidate = reference + 0.01 * normal(n).float()
    assert kernel.sums(reference, candidate, "all") is not None
    check(measure(reference, candidate).result(), oracle(reference, candidate))


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SMALL_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16)
LARGE_INTEGERS = (torch.int32, torch.int64, torch.uint32, torch.uint64)
DTYPES = FLOATS + SMALL_INTEGERS + LARGE_INTEGERS


@pytest.mark.parametrize("n", [5, N])
@pytest.mark.parametrize("candidate_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reference_dtype", DTYPES, ids=str)
def test_every_dtype_pair(reference_dtype: torch.dtype, candidate_dtype: torch.dtype, n: int) -> None:
    reference = (50 * torch.rand(n)).to(reference_dtype)
    candidate = (50 * torch.rand(n)).to(candidate_dtype)
    found = measure(reference, candidate).result()
    check(found, oracle(reference, candidate))
    integers = {reference_dtype, candidate_dtype} - set(FLOATS)
    unequal = (reference.double() != candidate.double()).double().mean().item()
    assert found.mismatch == (pytest.approx(unequal, rel=1e-12) if integers else None)


def test_float64_differences_below_float32_resolution() -> None:
    reference = normal(N)
    candidate = reference + 1e-12 * normal(N)
    check(measure(reference, candidate).result(), oracle(reference, candidate))


def test_bfloat16_rounding_of_float32() -> None:
    reference = normal(N).float()
    candidate = reference.bfloat16()
    found = measure(reference, candidate).result()
    check(found, oracle(reference, candidate))
    assert found.max is not None
    assert 0 < found.max < 2**-7


@pytest.mark.parametrize("module", [kernel, float64], ids=["kernel", "exact"])
@pytest.mark.parametrize("extra", [-1, 0, 1, 63, 64, 513])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sizes_about_the_block(monkeypatch: pytest.MonkeyPatch, module: object, extra: int, count: int) -> None:
    monkeypatch.setattr(module, "BLOCK", 4096)
    reference, candidate = close(n=count * 4096 + extra)
    if module is float64:
        monkeypatch.setattr(kernel, "sums", lambda *_, **__: None)
    check(measure(reference, candidate).result(), oracle(reference, candidate))


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 511, 512, 513, 2047, 2048, 2049, 2111])
def test_small_sizes(n: int) -> None:
    reference, candidate = close(n=n)
    expected = oracle(reference, candidate)
    check(measure(reference, candidate).result(), expected)
    fast = kernel.sums(reference, candidate, "all")
    if fast is not None:
        assert fast.mean == pytest.approx(expected["mean"], rel=1e-6)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_blocks_that_agree_count_when_others_do_not(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    # GIVEN three blocks of which one differs: the sums of squares of the equal ones must not be lost
    monkeypatch.setattr(kernel, "BLOCK", 4096)
    for dtype in (torch.float32, torch.bfloat16):
        reference = normal(3 * 4096).to(dtype)
        candidate = reference.clone()
        candidate[first * 4096 : (first + 1) * 4096] += 0.5 * torch.rand(4096).to(dtype)
        assert kernel.sums(reference, candidate, "all") is not None
        check(measure(reference, candidate).result(), oracle(reference, candidate))


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1),
    "permuted": lambda x: x.permute(2, 0, 1),
    "sliced": lambda x: x[:, :, 1:-3],
    "stepped": lambda x: x[::2, :, ::3],
    "flipped": lambda x: x.flip(0).transpose(1, 2),
    "expanded": lambda x: x[:, :1].expand(-1, 30, -1),
    "unsqueezed": lambda x: x.transpose(0, 1).unsqueeze(1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("alike", [True, False], ids=["both", "one"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(monkeypatch: pytest.MonkeyPatch, name: str, alike: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 4096)
    monkeypatch.setattr(float64, "BLOCK", 4096)
    reference = LAYOUTS[name]((10 * normal(20, 30, 40)).to(dtype))
    candidate = LAYOUTS[name]((10 * normal(20, 30, 40)).to(dtype))
    if not alike:
        candidate = candidate.contiguous()
    assert not reference.is_contiguous()
    check(measure(reference, candidate).result(), oracle(reference, candidate))


def test_blocks_cover_every_element_once() -> None:
    for shape in ((7, 5, 3, 111), (1, 1, 4000), (3000, 2), (2, 3000), (5, 7)):
        numbered = torch.arange(torch.Size(shape).numel()).view(shape)
        views = [numbered, numbered.mT, numbered.unsqueeze(0), numbered.expand(3, *shape)[1:2]]
        for reference in views:
            for candidate in (reference, reference.contiguous()):
                pairs = list(kernel.blocks(reference, candidate, 512))
                assert max(one.numel() for one, _ in pairs) <= 512
                seen = torch.cat([one.reshape(-1) for one, _ in pairs])
                assert seen.sort().values.equal(torch.arange(numbered.numel()))
                assert all(one.equal(other) for one, other in pairs)


def test_alike_transposed_tensors_are_not_copied() -> None:
    reference = normal(8, 30, 40).transpose(0, 2)
    pair = kernel.flat(reference, reference.clone())
    assert pair is not None
    assert pair[0].data_ptr() == reference.data_ptr()
    assert kernel.flat(reference, reference.contiguous()) is None


@pytest.mark.parametrize("direction", ["random", "along", "against", "across"])
@pytest.mark.parametrize("share", [1e-4, 9e-4, 1.1e-3, 1e-2])
def test_cosine_holds_where_the_candidates_squares_are_not_read(direction: str, share: float) -> None:
    generator = torch.Generator().manual_seed(5)
    reference = torch.randn(300, 257, generator=generator)
    noise = torch.randn(300, 257, generator=generator)
    if direction in ("along", "against"):
        noise = reference * (1 if direction == "along" else -1) * (1 + 0.01 * noise)
    if direction == "across":
        noise = noise - reference * float((noise * reference).sum() / (reference * reference).sum())
    candidate = reference + noise * (share * reference.norm() / noise.norm())
    r, c = reference.double().flatten().numpy(), candidate.double().flatten().numpy()
    expected = float(r @ c / np.linalg.norm(r) / np.linalg.norm(c))
    found = measure(reference, candidate).result().cosine
    assert found is not None
    assert abs(found - expected) < 1e-6 * abs(expected)


def test_cosine_holds_where_one_block_is_faithful_and_another_is_not() -> None:
    reference = torch.randn(3 * kernel.BLOCK // 512, 512)
    candidate = reference * 1.0005
    candidate[: kernel.BLOCK // 1024] *= -0.7
    r, c = reference.double().flatten().numpy(), candidate.double().flatten().numpy()
    expected = float(r @ c / np.linalg.norm(r) / np.linalg.norm(c))
    found = measure(reference, candidate).result().cosine
    assert found == pytest.approx(expected, rel=1e-6)
