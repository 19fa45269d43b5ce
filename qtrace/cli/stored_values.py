"""The calls of a stored trace as `qtrace show --module` lists them; only their tensors are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from qtrace.cli.recorder import CallRecorder
from qtrace.engine.events import End
from qtrace.patterns import select
from qtrace.report.records.calls import CallTrace
from qtrace.traces import StoredSide, Trace, skeleton


def recorded(trace: Trace, patterns: Sequence[str]) -> Iterator[list[CallTrace]]:
    """Yield, for each sample, the calls of the modules that are meant, with all values.

    Raises `UsageError` for a pattern that matches no module.
    """
    chosen = select(patterns, trace.manifest.selected, option="--module", listed_by="qtrace show TRACE")
    modules = {path: module for path, module in skeleton(trace).named_modules() if path in chosen}
    for number in range(len(trace.manifest.samples)):
        recorder = CallRecorder("trace", patterns)
        side = StoredSide(trace, number, {}, listener=recorder, modules=modules)
        # Without keys nothing stands still: the listener hears of all, and then comes the end.
        end = side.start(lambda: None)
        assert isinstance(end, End)
        side.close()
        name = "trace" if len(trace.manifest.samples) == 1 else f"sample {number}"
        yield [dataclasses.replace(call, side=name) for call in recorder.calls]
