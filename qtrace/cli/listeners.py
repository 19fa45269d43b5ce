"""Listeners to the calls of running models, for `modules`, `--show-trace`, `--inspect` and `--plot`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import RenderableType
from rich.text import Text

from qtrace.cli.recorder import CallRecorder, differences
from qtrace.engine.events import Bound, Call
from qtrace.numerics import plain
from qtrace.patterns import select
from qtrace.report.scatter import scatter
from qtrace.report.trace_listing import trace_listing
from qtrace.tree import leaves

POINTS = 2000


class CallCounter:
    """Counts the calls of each module of one side, by the side's own paths; `keys` maps these to reference paths."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.keys: dict[str, str] = {}

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Count the call."""
        self.calls[call.path] += 1
        if call.key is not None:
            self.keys[call.path] = call.key

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Do nothing."""


class FinalOutput:
    """Keeps at most `POINTS` evenly spaced elements of the first floating tensor that the root returns."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self.numel = 0

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Do nothing: the output does not exist yet."""

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Sample the root's output; of several calls the last one counts."""
        if call.path:
            return
        for _, leaf in leaves(value):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                flat = plain(leaf).flatten()
                self.numel = flat.numel()
                self.points = flat[:: max(1, -(-self.numel // POINTS))].to("cpu", torch.float64).tolist()
                return


class Everyone:
    """Combines several listeners into one."""

    def __init__(self, *listeners: Any) -> None:
        self._listeners = listeners

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Pass the call to all listeners."""
        for listener in self._listeners:
            listener.enter(call, module, arguments)

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Pass the call to all listeners."""
        for listener in self._listeners:
            listener.leave(call, module, value)


SIDES = ("reference", "candidate")


class Watch:
    """The listeners of `qtrace run`: the sides to list, the modules to list with all values, and whether to plot.

    `sides` are the names of the sides to list; without any, the inspected modules of both are listed.
    Raises `UsageError` for a pattern of `inspect` that matches no module of either model.
    """

    def __init__(
        self, models: Sequence[torch.nn.Module], sides: Sequence[str], inspect: Sequence[str], *, plot: bool
    ) -> None:
        paths = dict.fromkeys(path for model in models for path, _ in model.named_modules())
        select(inspect, paths, option="--inspect")
        listed = sides or (SIDES if inspect else ())
        self._recorders = [CallRecorder(side, inspect, only_inspected=not sides) for side in listed]
        self._finals = [FinalOutput(), FinalOutput()] if plot else []

    @property
    def listeners(self) -> tuple[Everyone | None, Everyone | None]:
        """Return the listeners to the reference and to the candidate; None where there is none."""
        reference, candidate = (
            [one for one in self._recorders if one.side == side] + self._finals[number : number + 1]
            for number, side in enumerate(SIDES)
        )
        return Everyone(*reference) if reference else None, Everyone(*candidate) if candidate else None

    def listing(self, width: int) -> Iterator[RenderableType]:
        """Yield the calls of each listed side, then the differences of the inspected modules."""
        for recorder in self._recorders:
            yield from trace_listing(recorder.calls, recorder.side, width=width)
        if len(self._recorders) == len(SIDES):
            reference, candidate = self._recorders
            found = list(differences(reference.values, candidate.values))
            if found:
                yield from trace_listing(found, "difference", width=width)

    def plot(self, width: int) -> Iterator[RenderableType]:
        """Yield the scatter plot of the final outputs, where it was requested."""
        if not self._finals:
            return
        reference, candidate = self._finals
        if reference.numel != candidate.numel:
            yield Text(f"No scatter plot: final outputs have {reference.numel} and {candidate.numel} elements.")
        else:
            yield scatter(reference.points, candidate.points, width=width)
