"""Records the calls of one side for `--show-trace` and `qtrace show`: arguments, outputs, on request every value."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from qtrace.engine.events import Bound, Call, End
from qtrace.numerics import NoValues, describe, plain
from qtrace.patterns import matches, select
from qtrace.report.records import TensorSpec
from qtrace.report.records.rows import CallTrace, ValueTrace
from qtrace.traces import StoredSide, Trace, skeleton
from qtrace.traces.excerpt import Sketch
from qtrace.tree import leaves

DECIMALS = 6
_QUANTIZER = re.compile(r"(^|_)(scales?|zero_points?|zps?)$")

Values = dict[tuple[str, int, str], torch.Tensor]


class CallRecorder:
    """Records the arguments and outputs of every call of one side, as statistics; of inspected calls all values.

    `inspect` are globs over the side's paths, or the reference paths that they are aligned with; with `only_inspected`
    no other calls are recorded. `values` keeps copies of the inspected outputs by (reference path, call, output).
    """

    def __init__(self, side: str, inspect: Sequence[str], *, only_inspected: bool = False) -> None:
        self.calls: list[CallTrace] = []
        self.values: Values = {}
        self.side = side
        self._inspect = inspect
        self._only_inspected = only_inspected
        self._entered: dict[Call, tuple[ValueTrace, ...]] = {}

    def enter(self, call: Call, module: torch.nn.Module, arguments: Bound) -> None:
        """Record the arguments before the module can write to them."""
        inspected = self._inspected(call)
        if inspected or not self._only_inspected:
            passed = {name: arguments.values[name] for name in arguments.values if name in arguments.passed}
            self._entered[call] = tuple(_traced(path, leaf, inspected) for path, leaf in leaves(passed))

    def leave(self, call: Call, module: torch.nn.Module, value: Any) -> None:
        """Record the outputs, and the quantization facts that the module holds."""
        arguments = self._entered.pop(call, None)
        if arguments is None:
            return
        inspected = self._inspected(call)
        outputs = leaves(value)
        traced = tuple(_traced(path, leaf, inspected) for path, leaf in outputs)
        facts = dict(quantizer_facts(module))
        self.calls.append(CallTrace(self.side, call.path, call.type, call.index, arguments, traced, facts))
        if inspected and call.key is not None:
            for path, leaf in outputs:
                if isinstance(leaf, torch.Tensor):
                    self.values[call.key, call.index, path] = leaf.detach().clone()

    def _inspected(self, call: Call) -> bool:
        names = [call.path] if call.key is None else [call.path, call.key]
        return any(matches(pattern, name) for pattern in self._inspect for name in names)


def differences(reference: Values, candidate: Values) -> Iterator[CallTrace]:
    """Yield reference - candidate, in full, for each output that both sides keep; none where the shapes differ."""
    for (module, call, path), mine in reference.items():
        theirs = candidate.get((module, call, path))
        if theirs is None:
            continue
        if mine.shape == theirs.shape:
            difference = plain(mine).to("cpu", torch.float64) - plain(theirs).to("cpu", torch.float64)
            output = _traced(path, difference, full=True)
        else:
            shapes = f"none: {list(mine.shape)} in the reference, {list(theirs.shape)} in the candidate"
            output = ValueTrace(path, TensorSpec(value=shapes))
        yield CallTrace("difference", module, "reference - candidate", call, (), (output,))


def quantizer_facts(module: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the scales and zero points that a module, or an observer directly in it, holds: (name, value)."""
    holders = [("", module), *((f"{name}.", child) for name, child in module.named_children())]
    for prefix, holder in holders:
        if prefix and any(True for _ in holder.children()):
            continue
        held: dict[str, Any] = {name: v for name, v in vars(holder).items() if isinstance(v, (int, float))}
        held |= dict(holder.named_parameters(recurse=False))
        held |= dict(holder.named_buffers(recurse=False))
        for name, value in held.items():
            if _QUANTIZER.search(name):
                text = _fact(value)
                if text:
                    yield prefix + name.lstrip("_").removeprefix("cached_"), text


def _fact(value: Any) -> str:
    """Return a scale or zero point as text: a number, or the count and the range of several."""
    if not isinstance(value, torch.Tensor):
        return f"{value:.6g}"
    try:
        found = describe(value)
    except NoValues:
        return ""
    if found.min is None or found.max is None:
        return ""
    if value.numel() == 1:
        return f"{found.min:.6g}"
    return f"{value.numel()} values, {found.min:.6g} … {found.max:.6g}"


def _traced(name: str, leaf: Any, full: bool) -> ValueTrace:
    if not isinstance(leaf, torch.Tensor):
        return ValueTrace(name, TensorSpec(type=type(leaf).__name__, value=repr(leaf)[:80]))
    if isinstance(leaf, Sketch):
        # The few elements of a sketch could be mistaken for the tensor.
        return ValueTrace(name, leaf.spec, leaf.summary.mean, leaf.summary.stddev)
    shape, dtype = tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")
    kind = "Tensor" if type(leaf) in (torch.Tensor, torch.nn.Parameter) else type(leaf).__name__
    try:
        found = describe(leaf)
    except NoValues:
        return ValueTrace(name, TensorSpec(shape, dtype, kind))
    spec = TensorSpec(shape, dtype, kind, None, found.min, found.max)
    return ValueTrace(name, spec, found.mean, found.stddev, _full_text(leaf) if full else None)


def _full_text(tensor: torch.Tensor) -> str:
    values = plain(tensor).cpu()
    if values.dtype is torch.bfloat16:
        values = values.float()
    return np.array2string(values.numpy(), threshold=sys.maxsize, precision=DECIMALS, separator=", ")


def recorded(trace: Trace, patterns: Sequence[str]) -> Iterator[list[CallTrace]]:
    """Yield, for each sample, the calls of the selected modules, with all values.

    Raises `UsageError` for a pattern that matches no module.
    """
    chosen = select(patterns, trace.manifest.selected, option="--module", listed_by="qtrace show TRACE")
    modules = {path: module for path, module in skeleton(trace).named_modules() if path in chosen}
    for number in range(len(trace.manifest.samples)):
        recorder = CallRecorder("trace", patterns)
        side = StoredSide(trace, number, {}, listener=recorder, modules=modules)
        # Without keys there are no events to stop at: the listener receives all calls, and then the run ends.
        end = side.start(lambda: None)
        assert isinstance(end, End)
        side.close()
        name = "trace" if len(trace.manifest.samples) == 1 else f"sample {number}"
        yield [dataclasses.replace(call, side=name) for call in recorder.calls]
