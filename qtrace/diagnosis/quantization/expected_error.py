"""Computes the error that rounding alone makes in a module's output: the error of a correct quantized module."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from qtrace.diagnosis.quantization.facts import UNREADABLE
from qtrace.diagnosis.quantization.ranges import (
    WIDE,
    blocks_of,
    cut,
    extents,
    is_rounded,
    with_gain,
    without_empty,
    without_gain,
)
from qtrace.numerics import plain
from qtrace.toolkits.quantizer import Reading

_FLOAT = re.compile(r"float\d+_e(?P<exponent>\d+)m(?P<mantissa>\d+)")
# Of a larger output only so many elements are computed: some rows, since the weight's rounding is the same in each.
_ELEMENTS = 1 << 24
# A weight may have gone through bfloat16.
_CAST = 2**-8


def rounded(values: Tensor, reading: Reading, *, saturates: bool = False) -> Tensor | None:
    """Return `values`, each at the nearest level, as if the quantizer fitted: no value saturates unless `saturates`.

    A range more than 8 times as wide as the values is a fault, and no matter of rounding; a range that ends where the
    values do replaces it. Return None if scales or levels are not known, are no numbers, or do not fit the shape.
    """
    if reading.levels is None or not values.numel() or not values.dim():
        return None
    fitting = _fitting(values, reading)
    if fitting is None:
        return None
    blocks, step, zero = fitting
    shape = [size for count in blocks for size in (count, 1)]
    step, zero = step.reshape(shape), zero.reshape(shape) if zero.numel() > 1 else zero
    levels = cut(values, blocks) / step + zero
    nearest = _nearest(levels, reading)
    if saturates:
        nearest = nearest.clamp(*reading.levels)
    return ((nearest - zero) * step).reshape(values.shape)


def _fitting(values: Tensor, reading: Reading) -> tuple[list[int], Tensor, Tensor] | None:
    """Return the blocks, and the step and the zero point of each; a step far too wide is fitted to the values."""
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    if reading.scale is None:
        blocks = _dynamic_blocks(values, reading)
        return None if blocks is None else (blocks, _fit(values, reading, blocks), zero)
    step = reading.scale.detach().to(values)
    blocks = blocks_of(values.shape, step, reading.axis)
    if blocks is None or not bool((torch.isfinite(step) & (step > 0)).all()):
        return None
    if reading.zero_point is not None and reading.zero_point.numel() in (1, step.numel()):
        zero = reading.zero_point.detach().to(values).flatten()
    fit = _fit(values, reading, blocks)
    step = step.flatten()
    return blocks, torch.where(step > WIDE * fit.flatten(), fit.flatten(), step), zero


def _dynamic_blocks(values: Tensor, reading: Reading) -> list[int] | None:
    """Return the blocks of a scale chosen at each call: all values, a token, or a group of a token's values."""
    if reading.group is not None:
        count, rest = divmod(values.shape[-1], reading.group)
        return None if rest else [*values.shape[:-1], count]
    return [*values.shape[:-1], 1] if reading.by_token else [1] * values.dim()


def _fit(values: Tensor, reading: Reading, blocks: list[int]) -> Tensor:
    """Return the step of a range that ends where the values of its block do."""
    assert reading.levels is not None
    low, high = reading.levels
    least, most = extents(values, blocks)
    if reading.symmetric is False:
        step = (most.clamp(min=0) - least.clamp(max=0)) / (high - low)
    else:
        step = torch.maximum(most.abs(), least.abs()) / max((high - low) / 2 if low >= 0 else high, 1)
    # Where all values are zero any step will do.
    return torch.where(step > 0, step, torch.ones_like(step))


def _nearest(levels: Tensor, reading: Reading) -> Tensor:
    if reading.codes is not None:
        codes = reading.codes.detach().to(levels).sort().values
        return codes[torch.bucketize(levels, (codes[1:] + codes[:-1]) / 2)]
    form = _FLOAT.match(reading.dtype)
    if form is None:
        return levels.round()
    # Between 2**e and 2**(e + 1) there are 2**mantissa steps; below the least normal number they get no smaller.
    least = 2 - 2 ** (int(form["exponent"]) - 1)
    exponent = torch.frexp(levels).exponent.clamp(min=least + 1) - 1 - int(form["mantissa"])
    step = torch.ldexp(torch.ones_like(levels), exponent)
    return (levels / step).round() * step


def expected_error(
    readings: Sequence[Reading], reference: torch.nn.Module, values: Mapping[str, Tensor]
) -> float | None:
    """Return the RMS, in the output's unit, of the error that rounding makes in the output of `reference`.

    `readings` are the quantizers of all partners of `reference` (`readings_of`). `values` has the module's input tensor
    under "input" and its output tensor under "output" (`Observed`), as far as these are known.
    With x, W and y the reference's, and rounding written as ^, this is the RMS of

        (f(x^, W^) - f(x, W) + y)^ - y

    over all elements, or for a large matrix product over rows with 16 M of them. For a linear layer it is close to the
    root of the sum of sum_k x_k^2 step_w^2/12, ||w||^2 step_x^2/12, and step_y^2/12. Each tensor is rounded by the
    quantizer's own scale to the nearest level. Saturation, or a range 8 times too wide, is a fault and not expected.

    Return None if that is not known: for a quantizer in between, a quantizer of the input of a module that is no
    single function of `torch.nn`, a quantizer after a ReLU that was fused with it, a weight that is not the
    reference's (folded or rotated), scales that are missing or no numbers.
    """
    error = _error(readings, reference, values, is_peak=False)
    rms = math.nan if error is None else error.square().mean(dtype=torch.float64).sqrt().item()
    return rms if math.isfinite(rms) else None


def expected_peak(
    readings: Sequence[Reading], reference: torch.nn.Module, values: Mapping[str, Tensor]
) -> float | None:
    """Return the largest error, in the output's unit, that rounding makes in the output of `reference`.

    As `expected_error`, but the maximum of the absolute value. If rows are chosen, they are the input's rows with the
    largest values: there the error is largest. Saturation counts as well, since a few values far out may be cut off on
    purpose; too many of them are a problem of its own (`quant_facts`).
    """
    error = _error(readings, reference, values, is_peak=True)
    peak = math.nan if error is None else error.abs().max().item()
    return peak if math.isfinite(peak) else None


def _error(
    readings: Sequence[Reading], reference: torch.nn.Module, values: Mapping[str, Tensor], is_peak: bool
) -> Tensor | None:
    """Return the error that rounding makes in each element of the output's chosen rows; None if not known."""
    if not readings or any(reading.of == "inside" or reading.rectified for reading in readings):
        return None
    try:
        return _rounding(readings, reference, values, is_peak)
    except UNREADABLE:
        return None


def _rounding(
    readings: Sequence[Reading], reference: torch.nn.Module, values: Mapping[str, Tensor], is_peak: bool
) -> Tensor | None:
    returned = [reading for reading in readings if reading.of == "output"]
    output = values.get("output")
    if len(returned) < len(readings):
        found = _function_error(readings, reference, values, is_peak)
        if found is None:
            return None
        error, output = found
    elif output is not None:
        output = _real(output)
        error = torch.zeros_like(output)
    else:
        return None
    for reading in returned:
        after = rounded(output + error, reading, saturates=is_peak)
        if after is None:
            return None
        error = after - output
    return error


def _function_error(
    readings: Sequence[Reading], reference: torch.nn.Module, values: Mapping[str, Tensor], is_peak: bool
) -> tuple[Tensor, Tensor] | None:
    """Return the error that the rounding of weights and input adds to the output, and that output."""
    if not _is_one_function(reference):
        return None
    weights = {name: t if t is None else _real(t) for name, t in reference._parameters.items()}
    exact = values.get("input")
    if isinstance(reference, torch.nn.Embedding):
        exact = torch.arange(reference.num_embeddings, device=reference.weight.device)
    elif exact is not None:
        exact = _real(exact)
    if exact is None:
        return None
    after, coarse = dict(weights), exact
    for reading in readings:
        if reading.of == "weight":
            weight = _rounded_weight(weights.get(reading.parameter), reading, is_peak)
            if weight is None:
                return None
            after[reading.parameter] = weight
        elif reading.of == "input":
            taken = _taken(coarse, reading, is_peak)
            if taken is None:
                return None
            coarse = taken
    exact, coarse = _some_rows(exact, coarse, reference, _loudest if is_peak else _evenly)
    output = _apply(reference, weights, exact)
    return _apply(reference, after, coarse) - output, output


def _taken(values: Tensor, reading: Reading, is_peak: bool) -> Tensor | None:
    """Return the input as the candidate rounds it."""
    if not values.is_floating_point():
        return None
    after = rounded(with_gain(values, reading), reading, saturates=is_peak)
    return None if after is None else without_gain(after, reading)


def _rounded_weight(weight: Tensor | None, reading: Reading, is_peak: bool) -> Tensor | None:
    """Return the reference's weight as the candidate rounds it; None if the candidate rounds another weight."""
    if weight is None:
        return None
    weight = with_gain(weight, reading)
    reading = without_empty(reading, weight)
    held = reading.stored if reading.stored is not None else reading.weight
    known = None if held is None else plain(held).to(weight)
    if known is not None and not is_rounded(weight, known, reading):
        return None
    # A weight kept as it was is the reference's, or has another module's scale folded into it.
    if reading.stored is None and known is not None and not torch.allclose(known, weight, rtol=_CAST, atol=1e-6):
        return None
    after = rounded(weight, reading, saturates=is_peak)
    # Where the levels are not known, the stored weight shows where they lie.
    after = known if after is None and reading.stored is not None else after
    return None if after is None else without_gain(after, reading)


def _is_one_function(module: torch.nn.Module) -> bool:
    """Return whether a module is a stateless one of torch's own, or equivalent to one under another name."""
    torch_own = type(module).__module__.startswith("torch.nn.") or isinstance(module, torch.nn.Embedding)
    return not module._modules and (torch_own or type(module).__name__ == "Conv1D")


def _some_rows(
    exact: Tensor, coarse: Tensor, reference: torch.nn.Module, rows: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the chosen rows of a matrix of inputs, and the same rows of its rounding; of other inputs, all."""
    weight = reference._parameters.get("weight")
    if isinstance(reference, torch.nn.Embedding) and weight is not None:
        chosen = rows(_real(weight), _ELEMENTS // weight.shape[1])
        return exact[chosen], coarse[chosen]
    if (isinstance(reference, torch.nn.Linear) or type(reference).__name__ == "Conv1D") and weight is not None:
        flat = exact.reshape(-1, exact.shape[-1])
        chosen = rows(flat, _ELEMENTS // max(weight.shape))
        return flat[chosen], coarse.reshape(flat.shape)[chosen]
    return exact, coarse


def _evenly(matrix: Tensor, most: int) -> Tensor:
    """Return the indices of at most `most` rows, spread as evenly as possible."""
    return torch.arange(0, len(matrix), max(1, -(-len(matrix) // max(most, 1))), device=matrix.device)


def _loudest(matrix: Tensor, most: int) -> Tensor:
    """Return the indices of at most `most` rows, those with the largest values."""
    return matrix.abs().amax(1).topk(min(len(matrix), max(most, 1))).indices


def _apply(reference: torch.nn.Module, weights: Mapping[str, Tensor | None], values: Tensor) -> Tensor:
    """Return a module's output with other weights; the module is not changed, and its hooks do not run."""
    twin = copy.copy(reference)
    twin.__dict__["_parameters"] = dict(weights)
    twin._buffers = {name: b if b is None else _real(b) for name, b in reference._buffers.items()}
    twin.training = False
    with torch.no_grad():
        found = twin.forward(values)
    if not isinstance(found, Tensor):
        raise TypeError("returns no tensor")
    return found


def _real(values: Tensor) -> Tensor:
    """Return the values in a dtype for calculation: floats of 32 bits at least."""
    dense = plain(values)
    return dense.to(torch.float32) if dense.is_floating_point() and dense.dtype is not torch.float64 else dense
