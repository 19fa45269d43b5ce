"""Computes the statistics of a pair of tensors, by the path that fits them (`measure`), and of one (`describe`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qtrace.numerics import device, float64, kernel
from qtrace.numerics.dense import plain
from qtrace.numerics.kernel import INTEGERS, NARROW, blocks
from qtrace.numerics.metrics import Metrics, Sums, merge, statistics
from qtrace.report.records import Statistics

# Below this number of elements the float64 path is as fast as the kernel.
SMALL = 1 << 11
_BLOCK = 1 << 18


class Measurement:
    """Sums of one pair; on an accelerator they stay there, unread, until `result` is called."""

    __slots__ = ("_counted", "_sums", "metrics")

    def __init__(self, sums: Sums | torch.Tensor, metrics: Metrics, counted: bool) -> None:
        self._sums = sums
        self.metrics: Metrics = metrics
        self._counted = counted

    def sums(self) -> Sums:
        """Return the sums; the first call waits for the accelerator, if they are on one."""
        if isinstance(self._sums, torch.Tensor):
            self._sums = device.read(self._sums)
        return self._sums

    def result(self) -> Statistics:
        """Return the metrics; see `qtrace.numerics.metrics.statistics` for the formulas and their edges."""
        return statistics(self.sums(), metrics=self.metrics, counted=self._counted)


def measure(reference: torch.Tensor, candidate: torch.Tensor, *, metrics: Metrics = "all") -> Measurement:
    """Return the measurement of |reference - candidate| and related sums, over two tensors of one shape.

    Any dtypes (also two different ones), strides and devices are allowed; a candidate on another device is moved to
    the reference's. No input is written to and no state of torch changes. On an accelerator the work is queued and
    nothing waits for it before `Measurement.result`.

    `metrics="seed"` leaves out SQNR, cosine and relative L2, which need two more sums. `"range"` leaves out mean and
    stddev as well, so that min, max and PEIR remain.

    Raises `ValueError` when the shapes differ and `NoValues` when a tensor has no values (the meta device).
    """
    if reference.shape != candidate.shape:
        raise ValueError(
            f"reference has shape {list(reference.shape)} and candidate {list(candidate.shape)}; "
            "measure takes tensors of one shape, so bring them into one layout first"
        )
    if reference.is_complex() != candidate.is_complex():
        pair = (reference, candidate)
        reference, candidate = (x if x.is_complex() else plain(x).to(torch.complex128) for x in pair)
    reference, candidate = plain(reference), plain(candidate)
    full = metrics == "all"
    counted = reference.dtype in INTEGERS or candidate.dtype in INTEGERS
    if not (reference.is_cpu and candidate.is_cpu):
        if not (reference.is_cpu or reference.is_mps):
            return Measurement(device.sums(reference, candidate, full=full), metrics, counted)
        # mps has no float64; correct numbers are worth the wait.
        reference, candidate = reference.cpu(), candidate.cpu()
    found = None
    if reference.dtype in NARROW and candidate.dtype in NARROW and reference.numel() >= SMALL:
        found = kernel.sums(reference, candidate, metrics)
    if found is None:
        found = float64.sums(reference, candidate, full=full)
    return Measurement(found, metrics, counted)


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of the finite elements x of one tensor, in its own unit; None where there are none.

    `mean` = sum(x) / n, `stddev` = sqrt(sum((x - mean)²) / n), both in float64; `non_finite` counts the rest.
    """

    min: float | None = None
    max: float | None = None
    mean: float | None = None
    stddev: float | None = None
    non_finite: int = 0


def describe(tensor: torch.Tensor) -> Summary:
    """Return the statistics of one tensor's values; it may have any dtype and device, be quantized or sparse.

    True is 1 and False 0; complex numbers count as pairs. Waits for the accelerator if the tensor is on one.
    Raises `NoValues` as `plain` does.
    """
    tensor = plain(tensor)
    total = Sums()
    for block, _ in blocks(tensor, tensor, _BLOCK):
        if block.numel():
            total = merge(total, _block(block))
    if not total.finite:
        return Summary(non_finite=int(total.bad_reference))
    low, high, mean, stddev = (
        x + 0.0 if math.isfinite(x) else None  # -0.0 would be shown as -0
        for x in (total.low, total.high, total.mean, math.sqrt(total.squares / total.finite))
    )
    return Summary(low, high, mean, stddev, int(total.bad_reference))


def _block(block: torch.Tensor) -> Sums:
    pairs = block.numel()
    x = (block.cpu() if block.device.type == "mps" else block).to(torch.float64)
    low, high = (extreme.item() for extreme in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        x = x[torch.isfinite(x)]
        if not x.numel():
            return Sums(pairs, 0, pairs)
        low, high = (extreme.item() for extreme in torch.aminmax(x))
    mean = x.mean()
    squares = (x - mean).square().sum().item()
    finite = x.numel()
    return Sums(pairs, finite, pairs - finite, low=low, high=high, mean=mean.item(), squares=squares)
