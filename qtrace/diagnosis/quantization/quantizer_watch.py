"""Holds every quantizer that runs in a candidate against the values that it rounds, wherever it stands.

The attributes of a module tell of its quantizers only what a reader knows how to find. What a fake quantizer does to
its values can be seen where it runs: in the code between two modules as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from qtrace.diagnosis.quantization.ranges import Range, range_problems, saturated_share
from qtrace.diagnosis.suspects import role
from qtrace.engine.events import Bound, Call
from qtrace.report.records import QuantProblem, QuantProblemKind
from qtrace.toolkits.quantizer import Reading, integer_name

# A step that is so many times as large, against its values, as those of its peers.
_FAR = 8.0
_FEWEST_PEERS = 2
# Codes beyond the ends of a grid: so large a share, or one so far out, as a part of all levels.
_MANY = 0.01
_LOST = 0.05


@dataclass(slots=True)
class _Seen:
    """One quantizer: its own name, the module with a partner whose code runs it, its step against its values."""

    owner: str
    name: str
    number: int
    dtype: str
    step: float | None
    problems: list[QuantProblem]


class QuantizerWatch:
    """A listener to the candidate, and a `Watcher` of the operators that its modules run."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._seen: dict[tuple[str, str, int], _Seen] = {}
        self._counts: dict[tuple[str, int], int] = {}
        # The reference's modules in whose code something is rounded by an operator that is no quantizer's.
        self.unscaled: set[str] = set()

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Note which module runs."""
        self._calls.append(call)

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Note that a module has run; those inside that raised have as well."""
        while self._calls and self._calls.pop() is not call:
            pass

    def quantizes(
        self,
        values: Tensor,
        scale: Tensor | float,
        zero_point: Tensor | float,
        levels: tuple[float, float],
        axis: int | None,
    ) -> None:
        """Hold a fake quantizer against its values."""
        steps, zero = (torch.as_tensor(t).detach().to("cpu", torch.float64) for t in (scale, zero_point))
        reading = Reading(
            name="", of="inside", dtype=integer_name(*levels), scale=steps, zero_point=zero, levels=levels, axis=axis
        )
        held = Range.of(reading)
        if held is None or not values.numel() or not values.dim():
            return
        share = saturated_share(values, reading, held)
        problems = [] if share is None else list(range_problems(values, reading, held, share))
        size = float(values.detach().abs().median())
        self._note(reading.dtype, float(steps.median()) / size if size > 0 else None, problems)

    def rounds(self) -> None:
        """Note whose code rounds."""
        owner = self._owner()
        if owner is not None and owner.key is not None:
            self.unscaled.add(owner.key)

    def cuts(self, codes: Tensor, cut: Tensor) -> None:
        """Hold the clamp of a rounding against its codes."""
        beyond = (codes - cut).abs()
        interval = max(float(cut.max() - cut.min()), 1.0)
        share = float((beyond > 0.5 + 1e-3).double().mean())
        if share >= _MANY or float(beyond.max()) > max(_LOST * interval, 1.0):
            said = f"{share:.2%} of the values lie outside of what it represents"
            remedy = "calibrate on inputs like these, or widen the range"
            self._note("", None, [QuantProblem(QuantProblemKind.CLIPPED, said, remedy)])

    def _note(self, dtype: str, step: float | None, problems: list[QuantProblem]) -> None:
        owner = self._owner()
        if owner is None:
            return
        prefix = f"{owner.path}." if owner.path else ""
        inner = self._calls[-1].path
        name = inner.removeprefix(prefix) if inner != owner.path else ""
        number = self._counts[inner, owner.index] = self._counts.get((inner, owner.index), 0) + 1
        assert owner.key is not None
        found = self._seen.setdefault((owner.key, name, number), _Seen(owner.key, name, number, dtype, step, []))
        found.problems += [problem for problem in problems if problem not in found.problems]

    def _owner(self) -> Call | None:
        """Return the innermost call that runs and has a partner in the reference."""
        return next((call for call in reversed(self._calls) if call.key is not None), None)

    def rounds_in(self, module: str) -> bool:
        """Return whether anything was rounded in the code of a module of the reference's."""
        return module in self.unscaled or any(seen.owner == module for seen in self._seen.values())

    def modules(self) -> list[str]:
        """Return the reference's modules in whose code a quantizer does not fit."""
        return list(dict.fromkeys(seen.owner for seen in self._seen.values() if self._problems(seen)))

    def sentences(self, module: str) -> Iterator[str]:
        """Yield what is wrong with the quantizers in a module's own code."""
        for seen in self._seen.values():
            if seen.owner == module:
                for problem in self._problems(seen)[:1]:
                    named = f"quantizer {seen.name}" if seen.name else "a quantizer in its own code"
                    yield f"{named}{f' ({seen.dtype})' if seen.dtype else ''}: {problem}"

    def _problems(self, seen: _Seen) -> list[QuantProblem]:
        peers = [other.step for other in self._seen.values() if other.step is not None and self._is_peer(seen, other)]
        if seen.step is None or len(peers) < _FEWEST_PEERS or not seen.step > _FAR * median(peers):
            return seen.problems
        said = f"its step is {seen.step / median(peers):.3g} times as large, against its values, as in the other layers"
        return [*seen.problems, QuantProblem(QuantProblemKind.DEAD_RANGE, said, "calibrate it as the others were")]

    @staticmethod
    def _is_peer(one: _Seen, other: _Seen) -> bool:
        same = (one.name, one.number) == (other.name, other.number)
        return same and one.owner != other.owner and role(one.owner) == role(other.owner)
