"""`measure` inside a model's forward: torch's state neither disturbs it nor is disturbed, threads included."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from greenlet import greenlet

from qtrace.numerics import float64, kernel, measure
from qtrace.report.records import Statistics
from tests.numerics.test_oracle import check, oracle

SIZES = (10, 6000)


def pair(n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    reference = torch.randn(n)
    return reference.to(dtype), (reference + 0.01 * torch.randn(n)).to(dtype)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("state", STATES)
def test_state_does_not_matter(state: str, n: int, dtype: torch.dtype) -> None:
    reference, candidate = pair(n, dtype)
    expected = measure(reference, candidate).result()
    with STATES[state]():
        assert measure(reference, candidate).result() == expected


@pytest.mark.parametrize("n", SIZES)
def test_scratch_made_in_one_mode_serves_in_the_other(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    for first, second in ((torch.inference_mode, nullcontext), (nullcontext, torch.inference_mode)):
        for module in (kernel, float64):
            monkeypatch.setattr(module, "_scratch", type(module._scratch)())
        for context in (first, second, first):
            with context():
                reference, candidate = pair(n, torch.bfloat16)
                check(measure(reference, candidate).result(), oracle(reference, candidate))


@pytest.mark.parametrize("n", SIZES)
def test_inference_tensors_outside_of_inference_mode(n: int) -> None:
    with torch.inference_mode():
        reference, candidate = pair(n)
    check(measure(reference, candidate).result(), oracle(reference, candidate))
    assert reference.is_inference()


@pytest.mark.parametrize("n", SIZES)
def test_nothing_is_recorded_for_backward(n: int) -> None:
    reference, candidate = (x.requires_grad_() * 1 for x in pair(n))
    check(measure(reference, candidate).result(), oracle(reference, candidate))
    torch.autograd.backward(reference.sum())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_the_inputs_are_left_alone(n: int, dtype: torch.dtype) -> None:
    tensors = [(100 * x).to(dtype) for x in pair(n)]
    tensors[0][0], versions = 3, [x._version for x in tensors]
    copies = [x.clone() for x in tensors]
    versions = [x._version for x in tensors]
    measure(*tensors).result()
    assert all(x.equal(copy) for x, copy in zip(tensors, copies, strict=True))
    assert [x._version for x in tensors] == versions


def test_global_state_is_left_alone() -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.get_rng_state().tolist(),
        )

    for context in (nullcontext, torch.no_grad, torch.inference_mode):
        with context():
            pairs = [pair(n) for n in SIZES]
            before = state()
            for reference, candidate in pairs:
                measure(reference, candidate).result()
            assert state() == before


def test_two_threads_at_once() -> None:
    pairs = [pair(5000 + 64 * i, dtype) for i in range(6) for dtype in (torch.float32, torch.bfloat16)]
    pairs += [(r.double(), c.double()) for r, c in pairs]
    expected = [measure(r, c).result() for r, c in pairs]
    barrier = threading.Barrier(4)

    def work(_: int) -> list[Statistics]:
        torch.set_num_threads(1)
        barrier.wait()
        return [measure(r, c).result() for _ in range(5) for r, c in pairs]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            assert found == expected * 5


def test_in_greenlets_that_take_turns() -> None:
    pairs = [pair(6000), pair(6000)]
    expected = [measure(r, c).result() for r, c in pairs]
    main = greenlet.getcurrent()
    found: list[list[Statistics]] = [[], []]

    def side(index: int) -> None:
        for _ in range(3):
            found[index].append(measure(*pairs[index]).result())
            main.switch(None)

    sides = [greenlet(side), greenlet(side)]
    for _ in range(4):
        for index, one in enumerate(sides):
            one.switch(index)
    assert found == [[expected[0]] * 3, [expected[1]] * 3]


def test_result_may_be_asked_for_twice() -> None:
    measurement = measure(*pair(100))
    assert measurement.result() == measurement.result()
