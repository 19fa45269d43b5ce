"""The accelerator's path: torch code for any device, so that it can be checked on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from qtrace.numerics import device, measure
from qtrace.numerics.metrics import statistics
from qtrace.report.records import Statistics
from tests.numerics.test_oracle import near


def pair(n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    reference = torch.randn(n)
    return reference.to(dtype), (reference + 0.01 * torch.randn(n)).to(dtype)


def on_device(reference: torch.Tensor, candidate: torch.Tensor) -> Statistics:
    counted = not (reference.is_floating_point() and candidate.is_floating_point())
    return statistics(device.read(device.sums(reference, candidate, full=True)), counted=counted)


@pytest.mark.parametrize("n", [1, 50, 3000])
def test_it_agrees(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(device, "BLOCK", 1024)
    cases = [pair(n, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    for dtype in (torch.int64, torch.uint8, torch.bool):
        reference, candidate = pair(n)
        cases.append(((9 * reference).to(dtype), (9 * candidate).to(dtype)))
    cases += [(torch.ones(n), torch.zeros(n)), (torch.zeros(n), torch.zeros(n)), (torch.ones(n), torch.ones(n))]
    for reference, candidate in cases:
        found, expected = on_device(reference, candidate), measure(reference, candidate).result()
        assert found.status == expected.status
        for name in ("mean", "min", "max", "stddev", "peir", "sqnr_db", "cosine", "rel_l2", "mismatch"):
            assert getattr(found, name) == near(name, getattr(expected, name)), name


def test_it_at_the_edges() -> None:
    values = torch.tensor([1.0, 2.0, float("nan"), float("inf"), 5.0])
    other = torch.tensor([1.0, 2.5, 3.0, float("inf"), 5.0])
    assert on_device(values, other) == measure(values, other).result()
    assert on_device(values[2:3], other[2:3]) == measure(values[2:3], other[2:3]).result()
    assert on_device(torch.empty(0), torch.empty(0)) == Statistics()
    big = torch.tensor([2**53 + 1, 0]), torch.tensor([2**53, 0])
    assert on_device(*big).mismatch == 0.5
    # Squares of these are 0 in float64, and nothing is rescaled on a device.
    faint = on_device(*(torch.tensor([x, 1.0], dtype=torch.float64) for x in (0.0, 1e-200)))
    assert (faint.max, faint.sqnr_db, faint.rel_l2) == (1e-200, None, 0.0)
    mask = torch.tensor([0.0, torch.finfo(torch.float32).min])
    assert on_device(mask, -mask).peir == 2.0


def test_it_waits_for_nothing() -> None:
    # A fake tensor has no values: whatever looked at one, to branch or to size an output, would raise.
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x) for x in pair(3000)]
    ints = [mode.from_tensor((9 * x).long()) for x in pair(3000)]
    with mode:
        for reference, candidate in (fakes, ints, [fakes[0], ints[1]]):
            rows = device.sums(reference, candidate, full=True)
            assert rows.shape == (1, 15)
            with pytest.raises(Exception, match=r"_local_scalar_dense|data|fake"):
                rows[0, 0].item()
