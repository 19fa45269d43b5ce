"""The oracle of the statistics tests: numpy in float64 with exact sums, and a check that it is one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from qtrace.report.records import Statistics

RELATIVE = 1e-6
# What float64 itself leaves open where digits cancel: 0 dB, a right angle.
ABSOLUTE = {"sqnr_db": 1e-9, "cosine": 1e-12}


def numbers(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(tensor.detach().to(torch.float64).numpy()).ravel()


def oracle(reference: torch.Tensor, candidate: torch.Tensor) -> dict[str, float | None]:
    """Return the metrics over the pairs where both are finite, as their definitions say; sums are exact."""
    r, c = numbers(reference), numbers(candidate)
    keep = np.isfinite(r) & np.isfinite(c)
    r, c = r[keep], c[keep]
    e = np.abs(r - c)
    interval = r.max() - r.min()
    signal, answer, noise = (math.fsum(x * x) for x in (r, c, e))
    equal = not e.any()
    mean = math.fsum(e) / e.size
    # A second time, about the mean that float64 can hold.
    squares = math.fsum((e - mean) ** 2) - math.fsum(e - mean) ** 2 / e.size
    return {
        "mean": mean,
        "min": e.min(),
        "max": e.max(),
        "stddev": 0.0 if e.min() == e.max() else math.sqrt(squares / e.size),
        "peir": 0.0 if equal else e.max() / interval if interval else None,
        "sqnr_db": 10 * math.log10(signal / noise) if noise and signal else None,
        "cosine": math.fsum(r * c) / math.sqrt(signal) / math.sqrt(answer) if signal and answer else None,
        "rel_l2": 0.0 if equal else math.sqrt(noise / signal) if signal else None,
        "reference_min": r.min(),
        "reference_max": r.max(),
    }


def near(name: str, value: float | None) -> Any:
    """Return what equals a metric's value within the tolerance, or None where there is none."""
    return None if value is None else pytest.approx(value, rel=RELATIVE, abs=ABSOLUTE.get(name, 1e-300))


def check(found: Statistics, expected: dict[str, float | None]) -> None:
    for name, value in expected.items():
        assert getattr(found, name) == near(name, value), name


def test_oracle_by_hand() -> None:
    # GIVEN e = 0, 1, 2, 1 and r in [0, 4]
    found = oracle(torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 4.0, 3.0]))
    assert found["mean"] == 1.0
    assert found["stddev"] == pytest.approx(math.sqrt(0.5))
    assert found["peir"] == 0.5
    assert found["sqnr_db"] == pytest.approx(10 * math.log10(21 / 6))
    assert found["cosine"] == pytest.approx(22 / math.sqrt(21 * 29))
    assert found["rel_l2"] == pytest.approx(math.sqrt(6 / 21))


def test_check_notices_a_small_error() -> None:
    expected = {"mean": 1.0, "peir": None}
    check(Statistics(mean=1.0 + 5e-7), expected)
    with pytest.raises(AssertionError, match="mean"):
        check(Statistics(mean=1.0 + 2e-6), expected)
    with pytest.raises(AssertionError, match="peir"):
        check(Statistics(mean=1.0, peir=0.0), expected)
