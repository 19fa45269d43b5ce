"""Value types for the quantization of a candidate's module. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

# Weight, input and output.
_ALL_OUTER = 3


class QuantProblemKind(str, Enum):
    """The kinds of problems of a quantizer."""

    UNCALIBRATED = "uncalibrated"
    CLIPPED = "clipped"
    DEAD_RANGE = "dead_range"
    WRONG_AXIS = "wrong_axis"


@dataclass(frozen=True, slots=True)
class QuantProblem:
    """A problem of a quantizer, its numbers, and its remedy, each in a few words."""

    kind: QuantProblemKind
    said: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind.value.replace('_', ' ')}: {self.said}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """One quantizer of a module: it rounds a real x to scale * (clamp(round(x / scale) + zero_point) - zero_point).

    `name` is the toolkit's name for it. `of` is the tensor that it rounds: "weight", "input", "output", or "inside" for
    a tensor in between. `scheme` is "per tensor", "per channel" (of the `axis`), "per group" (of `group` elements), or
    "dynamic", chosen anew at each call. `scale` and `zero_point` are the least and the greatest of `scales` values,
    over the finite ones. `range` covers the numbers that at least one of them can represent, in the tensor's own unit.
    `rounding` is the expected RMS error of rounding to the widest step, step / sqrt(12), in that unit; `rounding_peir`
    is its ratio to the interval max - min of the tensor. `saturated` is the share of values that lie outside of the
    range by more than half a step: for a weight before it is rounded, for inputs and outputs as the reference has them.
    A number that is unknown, or that the dtype does not have (float8 has no single step), is None.
    """

    name: str
    of: str
    dtype: str
    scheme: str
    symmetric: bool | None = None
    axis: int | None = None
    group: int | None = None
    scales: int = 0
    scale: tuple[float, float] | None = None
    zero_point: tuple[float, float] | None = None
    range: tuple[float, float] | None = None
    rounding: float | None = None
    rounding_peir: float | None = None
    saturated: float | None = None
    problems: tuple[QuantProblem, ...] = ()

    def __str__(self) -> str:
        """Return dtype and scheme, then the numbers that are known.

        >>> str(Quantizer(name="weight", of="weight", dtype="int8", scheme="per channel", symmetric=True, axis=0))
        'int8 per channel (axis 0), symmetric'
        """
        where = f" (axis {self.axis})" if self.axis is not None else ""
        where += f" of {self.group}" if self.group is not None else ""
        form = {None: "", True: ", symmetric", False: ", affine"}[self.symmetric]
        said = f"{self.dtype} {self.scheme}{where}{form}"
        for name, numbers in (("scale", self.scale), ("zero point", self.zero_point)):
            if numbers is not None:
                said += f", {name} {_span(numbers)}"
        if self.range is not None:
            said += f", range {self.range[0]:.4g} to {self.range[1]:.4g}"
        if self.rounding is not None:
            said += f", rounds by {self.rounding:.2e}"
        if self.rounding_peir is not None:
            said += f" (PEIR {self.rounding_peir:.2e})"
        if self.saturated is not None:
            said += f", {self.saturated:.2%} saturated"
        return said


@dataclass(frozen=True, slots=True)
class QuantFacts:
    """The quantization of a module: the toolkit, and the quantizers in the order in which the module holds them."""

    toolkit: str
    quantizers: tuple[Quantizer, ...]

    def problems(self) -> Iterator[tuple[Quantizer, QuantProblem]]:
        """Yield the problems, each with its quantizer."""
        for quantizer in self.quantizers:
            yield from ((quantizer, problem) for problem in quantizer.problems)

    def sentences(self) -> Iterator[tuple[QuantProblemKind, str]]:
        """Yield the problems in words, each with its kind; a problem of several quantizers is stated once."""
        named: dict[tuple[str, QuantProblem], list[str]] = {}
        for quantizer, problem in self.problems():
            named.setdefault((quantizer.dtype, problem), []).append(quantizer.name)
        for (dtype, problem), names in named.items():
            several = "s" if len(names) > 1 else ""
            yield problem.kind, f"quantizer{several} {', '.join(names)} ({dtype}): {problem}"

    def short(self) -> str:
        """Return the dtypes, the rounded tensors where there are several, and the problems.

        >>> weight = Quantizer(name="w", of="weight", dtype="int4", scheme="per channel")
        >>> QuantFacts("tico", (weight,)).short()
        'weight int4'
        >>> QuantFacts("tico", (weight, Quantizer(name="i", of="input", dtype="int4", scheme="dynamic"))).short()
        'weight/input int4'
        """
        outer = [q for q in self.quantizers if q.of != "inside"]
        places: dict[str, list[str]] = {}
        for quantizer in outer or self.quantizers:
            places.setdefault(quantizer.dtype, []).append(quantizer.of)
        words = [f"{'/'.join(dict.fromkeys(of))} {dtype}" for dtype, of in places.items()]
        if len(places) == 1 and len({q.of for q in outer}) == _ALL_OUTER:
            words = list(places)
        wrong = dict.fromkeys(f"{q.name} {p.kind.value.replace('_', ' ')}" for q, p in self.problems())
        return ", ".join([*words, *wrong])


def _span(numbers: tuple[float, float]) -> str:
    low, high = numbers
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
