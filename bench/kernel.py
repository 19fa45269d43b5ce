"""The statistics kernel beside the straightforward code in torch and in numpy: `python -m bench.kernel`.

A rate counts the bytes of both inputs once, whatever an implementation reads again. The implementations take
turns within each repetition, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from qtrace.numerics import measure

SHAPES = ((32, 1024, 1024), (512, 1536), (512, 576), (128, 576))
REPETITIONS = {"large": 7, "small": 40}
SAMPLE_S = 2e-3
LARGE = 1 << 22


def torch_seed(reference: torch.Tensor, candidate: torch.Tensor) -> list[float]:
    """Return mean, min, max, stddev and PEIR in plain torch."""
    e = (reference - candidate).abs()
    peir = e.max() / (reference.max() - reference.min())
    return [float(x) for x in (e.mean(), e.min(), e.max(), e.std(correction=0), peir)]


def torch_all(reference: torch.Tensor, candidate: torch.Tensor) -> list[float]:
    """Return the seed's five, SQNR, cosine and relative L2 in plain torch."""
    noise = reference - candidate
    r, c, d = (torch.linalg.vector_norm(x) for x in (reference, candidate, noise))
    cosine = torch.dot(reference.flatten(), candidate.flatten()) / (r * c)
    return [*torch_seed(reference, candidate), *(float(x) for x in (20 * torch.log10(r / d), cosine, d / r))]


def numpy_seed(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> list[float]:
    """Return mean, min, max, stddev and PEIR in plain numpy."""
    e = np.abs(reference - candidate)
    peir = e.max() / (reference.max() - reference.min())
    return [float(x) for x in (e.mean(), e.min(), e.max(), e.std(), peir)]


def numpy_all(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> list[float]:
    """Return the seed's five, SQNR, cosine and relative L2 in plain numpy."""
    r, c, d = (np.linalg.norm(x) for x in (reference, candidate, reference - candidate))
    cosine = np.dot(reference.ravel(), candidate.ravel()) / (r * c)
    return [*numpy_seed(reference, candidate), *(float(x) for x in (20 * np.log10(r / d), cosine, d / r))]


def run() -> list[dict[str, Any]]:
    """Return a row per shape, implementation and set of metrics.

    Each has `shape`, `elements`, `threads`, `implementation` ("qtrace", "torch", "numpy"), `metrics` ("seed",
    "all"), `pair` ("unequal", "equal"), `best_s`, `median_s`, `best_gb_per_s`, `median_gb_per_s` and, of
    qtrace, `ratio_to_torch` and `ratio_to_numpy` (best against best; above 1 is faster).
    """
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        rows.extend(_run_shape(shape))
    return rows


def _run_shape(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(shape, generator=generator)
    candidate = torch.randn(shape, generator=generator).mul_(1e-3).add_(reference)
    r, c = reference.numpy(), candidate.numpy()
    same = reference.clone()
    tasks: dict[tuple[str, str, str], Callable[[], object]] = {
        ("qtrace", "seed", "unequal"): lambda: measure(reference, candidate, metrics="seed").result(),
        ("torch", "seed", "unequal"): lambda: torch_seed(reference, candidate),
        ("numpy", "seed", "unequal"): lambda: numpy_seed(r, c),
        ("qtrace", "all", "unequal"): lambda: measure(reference, candidate).result(),
        ("torch", "all", "unequal"): lambda: torch_all(reference, candidate),
        ("numpy", "all", "unequal"): lambda: numpy_all(r, c),
        ("qtrace", "all", "equal"): lambda: measure(reference, same).result(),
    }
    times = _time(tasks, REPETITIONS["large" if reference.numel() >= LARGE else "small"])
    size = 2 * reference.numel() * reference.element_size()
    rows = []
    for (implementation, metrics, pair), seconds in times.items():
        row: dict[str, Any] = {
            "shape": list(shape),
            "elements": reference.numel(),
            "threads": torch.get_num_threads(),
            "implementation": implementation,
            "metrics": metrics,
            "pair": pair,
            "best_s": min(seconds),
            "median_s": median(seconds),
            "best_gb_per_s": size / min(seconds) / 1e9,
            "median_gb_per_s": size / median(seconds) / 1e9,
        }
        if implementation == "qtrace":
            for rival in ("torch", "numpy"):
                row[f"ratio_to_{rival}"] = min(times[rival, metrics, "unequal"]) / min(seconds)
        rows.append(row)
    return rows


def _time(tasks: dict[Any, Callable[[], object]], repetitions: int) -> dict[Any, list[float]]:
    """Return seconds per call of each task, one sample per repetition, the tasks taking turns."""
    loops = {}
    for key, task in tasks.items():
        task()
        start = time.perf_counter()
        task()
        loops[key] = max(1, round(SAMPLE_S / (time.perf_counter() - start)))
    times: dict[Any, list[float]] = {key: [] for key in tasks}
    for _ in range(repetitions):
        for key, task in tasks.items():
            start = time.perf_counter()
            for _ in range(loops[key]):
                task()
            times[key].append((time.perf_counter() - start) / loops[key])
    return times


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    view = Table(title=f"statistics kernel, float32, {rows[0]['threads']} threads: GB/s of both inputs (best, median)")
    for name in ("shape", "pair", "metrics", "code"):
        view.add_column(name, no_wrap=True)
    for name in ("best", "median", "best µs", "vs torch", "vs numpy"):
        view.add_column(name, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        ratios = [f"{row[k]:.1f}" if k in row else "" for k in ("ratio_to_torch", "ratio_to_numpy")]
        view.add_row(
            "x".join(map(str, row["shape"])),
            row["pair"],
            row["metrics"],
            row["implementation"],
            f"{row['best_gb_per_s']:.1f}",
            f"{row['median_gb_per_s']:.1f}",
            f"{row['best_s'] * 1e6:,.0f}",
            *ratios,
            end_section=i + 1 < len(rows) and rows[i + 1]["shape"] != row["shape"],
        )
    return view


def main() -> None:
    """Run the benchmark and print its table."""
    Console().print(table(run()))


if __name__ == "__main__":
    main()
