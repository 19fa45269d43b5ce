"""Runs one model and stores its calls: the trace of one side."""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import qtrace
from qtrace.engine.events import Call, End, Enter, Exit
from qtrace.engine.live_side import LiveSide
from qtrace.engine.lockstep_pass import copied
from qtrace.engine.model import Model, buffers_kept
from qtrace.engine.samples import as_samples, environment
from qtrace.engine.torch_state import RandomState
from qtrace.errors import ForwardError, UsageError, first_line
from qtrace.patterns import select
from qtrace.traces.manifest import Manifest, StoredCall, StoredSample, StoredValue
from qtrace.traces.skeleton import described, inputs_of, trace_of
from qtrace.traces.writer import Form, TraceWriter, leftovers

_LEFT = "{} was left by a capture to the same place that was killed; delete it, unless that one is still running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """Counts of a written trace: the calls that were seen, the stored tensors, and the bytes of these tensors."""

    calls: int
    tensors: int
    bytes: int
    warnings: tuple[str, ...] = ()


def capture(
    model: torch.nn.Module,
    inputs: Any,
    folder: str | Path,
    form: Form | None = None,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    call: str = "forward",
    source: str = "",
    name: str = "model",
    replaces: bool = False,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Captured:
    """Run a model on inputs and write its trace to `folder`, which must not exist yet.

    Args:
        model: stays as it was, without any hook, as with `qtrace.trace`.
        inputs: as for `qtrace.trace`.
        folder: the place where the trace appears once it is complete.
        form: the form in which values are stored; the default keeps all values as they are.
        only: globs over the model's paths; store the calls of these modules only.
        skip: globs over the model's paths; leave these modules out.
        call: the method to call instead of the model itself.
        source: the origin of the model, as the trace names it.
        name: the name of the model in messages.
        replaces: whether an existing trace is replaced.
        seed: seeds torch's random numbers before each sample, for models that draw random numbers.
        progress: called with (calls stored, calls expected).

    Raises:
        ForwardError: the model raised an exception; nothing is kept.
        OutputError: the trace could not be written, or exceeded its size limit; nothing is kept.
        UsageError: a pattern matches no module, the inputs have no usable form, or the model is a stored trace.
    """
    form = form or Form()
    stored_as = trace_of(model)
    if stored_as is not None:
        raise UsageError(f"the {name} is a trace already, {stored_as.name}, and cannot run; capture the model itself")
    samples = as_samples(inputs)
    described_model = Model(name, model, source)
    paths = list(described_model.modules)
    chosen = select(only, paths, option="--only") if only else set(paths)
    chosen = {"", *(chosen - select(skip, paths, option="--skip"))}
    warnings, left = described_model.warnings(), leftovers(Path(folder))
    with TraceWriter(folder, form, replaces=replaces) as writer, _run_alone(described_model):
        stored: list[StoredSample] = []
        drew = False
        for sample in samples:
            if seed is not None:
                torch.manual_seed(seed)
            recording = _Recording(described_model, chosen, writer, call, progress, len(samples))
            stored.append(recording.of(sample))
            drew = drew or recording.drew_random
            writer.forget()
        if any(sample.silent for sample in stored):
            first = stored[0].silent[0] or "<root>"
            warnings.append(
                f"{len(stored[0].silent)} modules of the {name} take no hooks ({first} …): they are not in the trace"
            )
        manifest = Manifest(
            qtrace=qtrace.__version__,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            environment=environment(),
            model=described_model.describe(),
            call=call,
            arguments=form.arguments,
            sketches=form.sketches,
            cast=form.cast,
            draws_random=drew,
            selected=tuple(path for path in paths if path in chosen),
            modules=tuple(described(described_model)),
            inputs=inputs_of(samples),
            samples=tuple(stored),
            warnings=tuple(warnings),
        )
        writer.commit(manifest)
        return Captured(
            calls=sum(len(sample.calls) for sample in stored),
            tensors=writer.count,
            bytes=writer.bytes,
            warnings=(*warnings, *map(_LEFT.format, left)),
        )


class _Recording:
    """One run of the model over one sample, call by call."""

    def __init__(
        self,
        model: Model,
        chosen: set[str],
        writer: TraceWriter,
        call: str,
        progress: Callable[[int, int], None] | None,
        samples: int,
    ) -> None:
        self.drew_random = False
        self._model = model
        self._writer = writer
        self._method = call
        self._progress = progress
        self._expected = len(chosen) * samples
        self._chosen = chosen
        self._calls: list[StoredCall | None] = []
        self._open: list[tuple[Call, int]] = []
        self._entered: dict[int, dict[str, Any]] = {}

    def of(self, sample: Any) -> StoredSample:
        """Run the sample and return its record."""
        model = self._model
        random = RandomState(model.devices)
        side = LiveSide(model.modules, {path: path for path in self._chosen}, devices=model.devices)
        end = End()
        with buffers_kept([model]):
            try:
                event = side.start(model.entry(self._method, copied(sample)))
                while not isinstance(event, End):
                    if isinstance(event, Enter):
                        self._enter(event, side)
                    else:
                        self._leave(event)
                    event = side.step()
                end = event
            finally:
                side.close()
        self._check(end)
        self.drew_random = not random.equals(RandomState(model.devices))
        returned = None if self._method == "forward" else self._writer.value(end.value, f"the result of {self._method}")
        return StoredSample(
            calls=tuple(call for call in self._calls if call is not None),
            returned=returned,
            unseen=tuple((path, reason, count) for (path, reason), count in side.unseen.items()),
            silent=tuple(side.silent),
        )

    def _enter(self, event: Enter, side: LiveSide) -> None:
        number, bound = len(self._calls), event.arguments
        site = side.site()
        self._entered[number] = {
            "parent": self._open[-1][1] if self._open else None,
            "arguments": self._writer.arguments(bound, _where(event.call)),
            "positional": tuple(bound.positional),
            "passed": tuple(name for name in bound.values if name in bound.passed),
            "site": None if site is None else (site.file, site.line, site.function),
        }
        self._calls.append(None)
        self._open.append((event.call, number))

    def _leave(self, event: Exit) -> None:
        while self._open and self._open[-1][0] is not event.call:
            # The exit of this call was lost: the model swallowed an object that is no Exception.
            self._close(*self._open.pop(), StoredValue(), "the call was never left")
        error = None if event.error is None else f"{type(event.error).__name__}: {first_line(event.error)}"
        outputs = StoredValue() if error else self._writer.value(event.value, _where(event.call))
        self._close(*self._open.pop(), outputs, error)
        if self._progress is not None:
            self._progress(min(len(self._calls), self._expected), self._expected)

    def _close(self, call: Call, number: int, outputs: StoredValue, error: str | None) -> None:
        self._calls[number] = StoredCall(
            module=call.path,
            type=call.type,
            call=call.index,
            caller=call.caller,
            entry=call.entry,
            order=call.order,
            outputs=outputs,
            error=error,
            **self._entered.pop(number),
        )

    def _check(self, end: End) -> None:
        if end.error is None:
            return
        if isinstance(end.error, KeyboardInterrupt):
            raise end.error
        kind = type(self._model.modules[end.module]).__name__
        raise ForwardError(
            f"the {self._model.name} raised {type(end.error).__name__} in {end.module or '<root>'} ({kind}): "
            f"{first_line(end.error)}; nothing was kept",
            side=self._model.name,
            module=end.module,
        ) from end.error


def _where(call: Call) -> str:
    return f"{call.path or '<root>'} (call {call.index})"


@contextlib.contextmanager
def _run_alone(model: Model) -> Iterator[None]:
    """Run without gradients, run compiled code eagerly, and restore the caller's random state."""
    random = RandomState(model.devices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if model.is_compiled() or "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            random.restore()
