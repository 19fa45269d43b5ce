"""The Python interface: `trace` runs two models and returns a `Report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from qtrace.engine.lockstep_pass import LEAST_COVERAGE, Options
from qtrace.engine.samples import as_samples
from qtrace.errors import ForwardError, Interrupted, UsageError, did_you_mean
from qtrace.numerics.tolerance import Floors
from qtrace.report.records import Argument, ReportData, Row, to_plain
from qtrace.traces import trace_of
from qtrace.tracing.run import Run
from qtrace.tracing.stored_run import StoredRun

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from qtrace.engine.live_side import Listener
    from qtrace.engine.lockstep import Attendant


class Report(ReportData):
    """The result of a run (see `qtrace.report.records.ReportData` for the fields), with methods for users.

    `rows` has an entry for each tensor of each call (over all samples), `arguments` the call arguments that differ,
    `coverage` the share of calls that was compared and why the rest was not, `outcome` the judgement of the whole run.
    """

    __slots__ = ()

    def save(self, path: str | Path) -> None:
        """Write the report; the ending of `path` selects the format (`.json`, …).

        Raises `UsageError` for an unknown ending and `OutputError` where the file cannot be written.
        """
        from qtrace.report import save

        save(self, path)

    def row(self, module: str, *, call: int = 0, output: str | None = None, sample: int | None = None) -> Row:
        """Return one row; without `output` the first row of that call.

        Of several samples a row holds the worst, `row.sample`; with `sample` given, the row must be of this sample.
        Raises `UsageError` where there is no such row.
        """
        for row in self.rows:
            if (row.module, row.call) == (module, call) and output in (None, row.output):
                if sample not in (None, row.sample):
                    raise UsageError(
                        f"the row for module {module!r}, call {call} is from sample {row.sample}, the worst of "
                        f"{row.samples}, not from sample {sample}; trace that sample alone to see it"
                    )
                return row
        names = {row.module for row in self.rows}
        raise UsageError(f"no row for module {module!r}, call {call}, output {output!r}; {did_you_mean(module, names)}")

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a data frame, a column per field; needs pandas (the extra qtrace[pandas])."""
        try:
            import pandas as pd
        except ImportError as error:
            raise UsageError("to_pandas needs pandas: pip install 'qtrace[pandas]'") from error
        return pd.DataFrame([to_plain(row) for row in self.rows], columns=[f.name for f in dataclasses.fields(Row)])

    def _repr_html_(self) -> str:
        from qtrace.report import to_html

        return to_html(self)


def trace(
    reference: torch.nn.Module,
    candidate: torch.nn.Module,
    inputs: Any,
    *,
    local: bool | None = None,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    tolerance: float | str = "auto",
    noise_floor: float | str = "auto",
    min_coverage: float = LEAST_COVERAGE,
    call: str = "forward",
    sources: tuple[str, str] = ("", ""),
    listeners: tuple[Listener | None, Listener | None] = (None, None),
    progress: Callable[[int, int], None] | None = None,
    breakpoints: Iterable[str] | Attendant = (),
) -> Report:
    """Run the same inputs through both models, in lockstep, and compare them module by module.

    Args:
        reference: the model that is correct by definition.
        candidate: the model that should compute the same.
        inputs: a mapping is keyword arguments, a tuple positional arguments, a tensor the single argument. A list of
            these is several samples, which run one after the other. Each row then covers all samples and names the
            worst one, and the faulty module is searched for in the first sample that differs.
        local: whether to measure the error that each module makes by itself and to search for the faulty module. This
            takes further passes, which pass the reference's tensors to the candidate at chosen boundaries. None does so
            where the final outputs of the first pass differ, True also where they agree, False never: then there is
            exactly one pass.
        only: globs over reference paths (`*` one component, `**` any number); compare these modules only.
        skip: globs over reference paths; leave these modules out.
        rename: patterns of candidate paths, with `*` for a component, to the reference paths that they are aligned
            with.
        tolerance: the PEIR up to which two tensors agree; "auto" derives it from their dtypes and depth.
        noise_floor: with the tolerance on "auto", a PEIR that always counts as rounding noise; "measured" runs the
            reference against itself in float64 and takes the loss of each tensor as its noise.
        min_coverage: the share of the reference's calls that must be compared; below it the outcome is
            inconclusive.
        call: the method to call instead of the model itself, such as "generate".
        sources: the origins of the two models, as the report names them.
        listeners: receive every call of each side, with its values.
        progress: called with (calls compared, calls expected).
        breakpoints: the places where both models stop and a prompt opens: `MODULE[:enter|exit][#call]` with a glob as
            MODULE, or a condition over a row's columns such as "peir > 1e-3"; see `docs/debugging.md`. Also a
            `qtrace.debug.Debugger`. Quitting at the prompt ends the run; the report says so.

    Returns:
        The report. No hook is left; the models' mode, their buffers (except large ones of modules in eval mode) and the
            caller's random state are as before.

    Raises:
        ForwardError: a model raised an exception; `.report` holds what was compared until then.
        Interrupted: Ctrl-C, likewise.
        UsageError: a pattern matches no module, or the inputs have no usable form.
    """
    for name, limit, words in (("tolerance", tolerance, ("auto",)), ("noise_floor", noise_floor, ("auto", "measured"))):
        if limit not in words and not (isinstance(limit, (int, float)) and limit >= 0):
            raise UsageError(f"{name} is {limit!r}; expected {_either(words)} or a number that is not negative")
    for name, model in (("reference", reference), ("candidate", candidate)):
        if not isinstance(model, torch.nn.Module):
            raise UsageError(f"{name} is a {type(model).__name__}; expected a torch.nn.Module")
        if call != "forward" and not callable(getattr(model, call, None)):
            raise UsageError(f"the {name} ({type(model).__name__}) has no method {call!r}")
    options = Options(
        only=tuple(only),
        skip=tuple(skip),
        renames=dict(rename or {}),
        floors=Floors(
            None if isinstance(tolerance, str) else float(tolerance),
            0.0 if isinstance(noise_floor, str) else float(noise_floor),
        ),
        measure_noise=noise_floor == "measured",
        local=local,
        min_coverage=min_coverage,
        call=call,
        sources=sources,
        listeners=listeners,
        progress=progress,
    )
    try:
        runs = Run if trace_of(reference) is None and trace_of(candidate) is None else StoredRun
        run = runs(reference, candidate, as_samples(inputs), options)
        run.attendant = _attendant(breakpoints, reference, candidate)
        return _as_report(run.execute())
    except (ForwardError, Interrupted) as error:
        if isinstance(error.report, ReportData):
            error.report = _as_report(error.report)
        raise


def _attendant(
    breakpoints: Iterable[str] | Attendant, reference: torch.nn.Module, candidate: torch.nn.Module
) -> Attendant | None:
    """Return the object that opens a prompt at these breakpoints, None where there are none."""
    texts: list[str] | None = None
    if isinstance(breakpoints, Iterable):
        texts = [breakpoints] if isinstance(breakpoints, str) else list(breakpoints)
        if not texts:
            return None
    if trace_of(reference) is not None and trace_of(candidate) is not None:
        raise UsageError("both sides are stored traces, which have no code to stop in; breakpoints need a live model")
    if texts is None:
        return cast("Attendant", breakpoints)
    from qtrace.debug import Debugger, stop_request_from_python

    wanted = stop_request_from_python(texts)
    return Debugger(wanted.breakpoints(reference), wanted.conditions)


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(map(repr, words))


def _as_report(data: ReportData) -> Report:
    return Report(**{f.name: getattr(data, f.name) for f in dataclasses.fields(data)})


__all__ = ["Argument", "Report", "Row", "trace"]
