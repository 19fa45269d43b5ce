"""Rows of several samples merged into one, against numpy over the samples' elements together."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qtrace
from qtrace.engine.comparison import Comparison
from qtrace.errors import ForwardError, UsageError
from qtrace.gate.limits import Context, is_void, numberless, read
from qtrace.report.records import AGREEING, Argument, Outcome, Relation, Row, Status, Verdict, dumps, loads
from qtrace.tracing.aggregate import Aggregate, merged, worse
from tests.helpers.models import Chain, twin

SIZES = st.floats(0, 1e6) | st.floats(1e-9, 1e-6)
ERRORS = st.lists(SIZES, min_size=0, max_size=40)
DIFFERING = [verdict for verdict in Verdict if verdict not in AGREEING]


def row(sample: int = 0, peir: float | None = 0.0, verdict: Verdict | None = Verdict.EQUAL, **fields: Any) -> Row:
    usual = {"module": "a", "call": 0, "output": "", "type": "Linear", "order": 3, "status": Status.COMPARED}
    return Row(**{**usual, "sample": sample, "peir": peir, "verdict": verdict, **fields})


def measured(errors: Sequence[float], sample: int = 0) -> Row:
    """Return the row of a sample with these |reference - candidate|, by numpy."""
    if not errors:
        return row(sample, None, verdict=Verdict.EQUAL)
    e = np.array(errors)
    return row(
        sample, float(e.max()), elements=len(e), mean=float(e.mean()), min=float(e.min()), max=float(e.max()),
        stddev=float(e.std()),
    )  # fmt: skip


def differs(sample: int = 0, peir: float | None = 0.1, **fields: Any) -> Row:
    usual: dict[str, Any] = {"verdict": Verdict.INHERITED, "elements": 4, "max": 1.0}
    return row(sample, peir, **{**usual, **fields})


@given(st.lists(ERRORS, min_size=1, max_size=6))
def test_mean_to_stddev_are_those_of_all_elements(samples: list[list[float]]) -> None:
    total = measured(samples[0])
    for index, errors in enumerate(samples[1:], 1):
        total = merged(total, measured(errors, index))
    e = np.array([error for errors in samples for error in errors])
    assert (total.samples, total.elements) == (len(samples), e.size)
    if not e.size:
        assert (total.mean, total.min, total.max, total.stddev) == (None, None, None, None)
        return
    assert (total.min, total.max, total.peir) == (e.min(), e.max(), e.max())
    assert total.mean == pytest.approx(e.mean(), rel=1e-12)
    # Of equal errors numpy's own mean is off by a rounding; squares of less than 1e-154 underflow.
    assert total.stddev == pytest.approx(e.std(), rel=1e-9, abs=max(1e-14 * e.max(), 1e-150))
    assert max(samples[total.sample], default=None) == e.max()


@given(st.lists(st.lists(SIZES, min_size=1, max_size=9), min_size=2, max_size=4))
def test_the_order_of_samples_does_not_matter(samples: list[list[float]]) -> None:
    rows = [measured(errors, index) for index, errors in enumerate(samples)]
    totals = []
    for order in itertools.permutations(rows):
        total = order[0]
        for other in order[1:]:
            total = merged(total, other)
        totals.append(total)
    for total in totals[1:]:
        assert (total.sample, total.min, total.max) == (totals[0].sample, totals[0].min, totals[0].max)
        assert total.mean == pytest.approx(totals[0].mean, rel=1e-12)
        assert total.stddev == pytest.approx(totals[0].stddev, rel=1e-9, abs=1e-14 * (total.max or 0.0))


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_no_square_leaves_the_range_of_floats(scale: float) -> None:
    first = row(mean=scale, min=0.0, max=2 * scale, stddev=scale, elements=2)
    total = merged(first, row(1, mean=4 * scale, min=4 * scale, max=4 * scale, stddev=0.0, elements=2))
    assert total.stddev == pytest.approx(scale * math.sqrt(2.75), rel=1e-12)


def test_equal_errors_have_no_spread() -> None:
    total = merged(row(mean=0.1, min=0.1, max=0.1, stddev=0.0, elements=3), measured([0.1]))
    assert merged(total, measured([0.1])).stddev == 0.0


def test_a_number_beyond_float_in_one_sample_is_none_in_all() -> None:
    beyond = row(1, None, Verdict.INHERITED, mean=None, min=0.0, max=None, stddev=None, elements=4)
    total = merged(measured([1.0, 2.0]), beyond)
    assert (total.mean, total.max, total.stddev, total.min) == (None, None, None, 0.0)
    assert total.peir is None


def test_what_was_not_measured_takes_nothing_from_the_others_numbers() -> None:
    odd = row(1, None, Verdict.STRUCTURE, status=Status.SHAPE_MISMATCH)
    for total in (merged(measured([1.0, 3.0]), odd), merged(odd, measured([1.0, 3.0]))):
        assert (total.mean, total.min, total.max, total.elements) == (2.0, 1.0, 3.0, 2)
        assert (total.sample, total.status, total.peir) == (1, Status.SHAPE_MISMATCH, None)


SAME = {"status": Status.NON_FINITE, "non_finite": (1, 1), "non_finite_same": True}
CONSTANT: dict[str, Any] = {"status": Status.CONSTANT_REFERENCE}
GAIN = {"relation": Relation("gain", {"factor": 2.0}, 4e-7), "peir_related": 4e-7, "verdict": Verdict.GAIN}
WORST = {
    "the larger PEIR": (differs(0, 0.1), differs(1, 0.2)),
    "a difference over an agreement with a larger PEIR": (row(0, 1e-6), differs(1, 2e-6)),
    "a floor may be larger in one sample": (differs(0, 1e-6), row(1, 3e-6)),
    "shape": (differs(0, 9.0), differs(1, None, status=Status.SHAPE_MISMATCH, verdict=Verdict.STRUCTURE)),
    "no partner over shape": (
        differs(0, None, status=Status.SHAPE_MISMATCH, verdict=Verdict.STRUCTURE),
        differs(1, None, status=Status.REFERENCE_ONLY, verdict=Verdict.UNMATCHED),
    ),
    "NaN in the candidate": (
        differs(0, 9.0),
        differs(1, 0.1, status=Status.NON_FINITE, non_finite=(0, 1), verdict=Verdict.NON_FINITE, non_finite_same=False),
    ),
    "a PEIR over NaN at the same places": (differs(0, 0.1, **SAME), differs(1, 0.2)),
    "no number": (differs(0, 9.0), differs(1, None)),
    "a number that is NaN": (differs(0, 9.0), differs(1, math.nan)),
    "no interval and no norm": (differs(0, 9.0), differs(1, None, **CONSTANT)),
    "without these, the larger difference": (
        differs(0, None, **CONSTANT, max=1.0),
        differs(1, None, **CONSTANT, max=2.0),
    ),
    "relative L2 without interval": (differs(0, 0.1), differs(1, None, **CONSTANT, rel_l2=0.2)),
    "a PEIR over a relative L2": (differs(0, None, **CONSTANT, rel_l2=0.1), differs(1, 0.2)),
    "no interval that is met": (row(0, None, **CONSTANT, rel_l2=1e-6), differs(1, 1e-3)),
    "an interval-free agreement by its relative L2": (row(0, 1e-7), row(1, None, **CONSTANT, rel_l2=1e-6)),
    "what remains under a relation": (differs(0, 0.34, **GAIN), differs(1, 1e-3)),
    "what is related, whatever its verdict, is judged by what remains": (
        differs(0, 0.34, relation=GAIN["relation"], peir_related=4e-7),
        differs(1, 0.2),
    ),
    "a factor in the model's own output": (
        differs(0, 0.2, **GAIN, module=""),
        differs(1, 0.34, **{**GAIN, "peir_related": 1e-9}, module=""),
    ),
}


@pytest.mark.parametrize("case", WORST)
def test_the_worst_sample_is(case: str) -> None:
    mild, bad = WORST[case]
    for total in (merged(mild, bad), merged(bad, mild)):
        of_bad = (total.sample, total.status, total.relation, total.peir_related, total.non_finite)
        assert of_bad == (1, bad.status, bad.relation, bad.peir_related, bad.non_finite)
        assert total.peir is bad.peir


def test_of_equally_bad_samples_the_first_is_named() -> None:
    assert merged(differs(2), differs(1)).sample == 1
    assert merged(differs(1), differs(2)).sample == 1


STATUS: dict[Verdict | None, Status] = {
    Verdict.NON_FINITE: Status.NON_FINITE,
    Verdict.STRUCTURE: Status.SHAPE_MISMATCH,
    Verdict.UNMATCHED: Status.REFERENCE_ONLY,
}


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (Verdict.EQUAL, Verdict.LAYOUT, Verdict.LAYOUT),
        (Verdict.ABSORBED, Verdict.GAIN, Verdict.ABSORBED),
        (Verdict.ABSORBED, Verdict.INHERITED, Verdict.INHERITED),
        (Verdict.INHERITED, Verdict.INTRODUCED, Verdict.INHERITED),
        (Verdict.INTRODUCED, Verdict.INHERITED, Verdict.INTRODUCED),
        (None, Verdict.ABSORBED, None),
        (Verdict.MISCALLED, Verdict.NON_FINITE, Verdict.NON_FINITE),
        (Verdict.UNMATCHED, Verdict.STRUCTURE, Verdict.UNMATCHED),
    ],
)
def test_the_verdict_is_the_worst_and_the_first_ones_among_ways(
    one: Verdict | None, other: Verdict | None, verdict: Verdict | None
) -> None:
    rows = [row(n, None, each, status=STATUS.get(each, Status.COMPARED)) for n, each in enumerate((one, other))]
    assert merged(*rows).verdict is verdict


def test_every_verdict_and_status_can_be_merged() -> None:
    rows = [
        row(n, None, verdict, status=status)
        for n, (verdict, status) in enumerate(itertools.product((None, *Verdict), Status))
    ]
    for order in (rows, rows[::-1]):
        total = order[0]
        for other in order[1:]:
            total = merged(total, other)
        assert (total.samples, total.status) == (len(rows), Status.REFERENCE_ONLY)
        assert total.verdict not in AGREEING


RATIOS = {"sqnr_db": min, "cosine": min, "rel_l2": max}


@pytest.mark.parametrize("name", RATIOS)
def test_each_ratio_is_its_own_worst(name: str) -> None:
    low, high = differs(0, 0.5, **{name: 0.2}), differs(1, 0.1, **{name: 0.9})
    assert getattr(merged(low, high), name) == getattr(merged(high, low), name) == RATIOS[name](0.2, 0.9)
    # Equal tensors are at their best, whatever number they have for it.
    equal = measured([0.0, 0.0])
    assert getattr(merged(low, equal), name) == getattr(merged(equal, low), name) == 0.2
    # A zero reference that is not met has none: that is worse than any.
    for none in (None, math.nan):
        assert getattr(merged(merged(low, differs(2, **{name: none})), high), name) is None


def test_equal_tensors_keep_their_cosine() -> None:
    ones = row(elements=2, mean=0.0, min=0.0, max=0.0, stddev=0.0, cosine=1.0, rel_l2=0.0)
    zeros = replace(ones, sample=1, cosine=None)
    assert (merged(ones, ones).cosine, merged(ones, zeros).cosine, merged(zeros, zeros).cosine) == (1.0, 1.0, None)
    assert merged(ones, zeros).rel_l2 == 0.0


def test_mismatch_received_and_introduced_are_the_largest() -> None:
    total = merged(differs(mismatch=0.5, peir_in=0.1, peir_local=None), differs(1, peir_in=0.2, peir_local=0.3))
    assert (total.mismatch, total.peir_in, total.peir_local) == (0.5, 0.2, 0.3)


def passes(one: Row, limit: float) -> bool:
    """Return whether a row keeps a limit on PEIR, as the gate judges it."""
    if is_void(one):
        return True
    reading = read(one, "peir", ["peir"], Context(frozenset(), {}))
    value = reading.value if reading is not None else None
    return numberless(one) is None and value is not None and value <= limit


NUMBERED = st.sampled_from(
    [v for v in (None, *Verdict) if v not in (Verdict.NON_FINITE, Verdict.STRUCTURE, Verdict.UNMATCHED)]
)
PEIRS = st.sampled_from([0.0, 0.1, 0.2, 0.3])
MAYBE = st.sampled_from([None, 0.0, 0.12, 0.5])
ALL_VERDICTS = st.sampled_from([None, *Verdict])


def rows_of(status: Status, *, verdict: Any = ALL_VERDICTS, **fields: st.SearchStrategy[Any]) -> Any:
    return st.builds(differs, sample=st.integers(0, 3), status=st.just(status), verdict=verdict, **fields)


NONE = st.none()
ANY_ROW = st.one_of(
    rows_of(Status.COMPARED, peir=PEIRS, verdict=NUMBERED),
    # What remains under a relation is less.
    rows_of(
        Status.COMPARED, peir=st.sampled_from([0.2, 0.3]), peir_related=st.sampled_from([0.0, 0.12]), verdict=NUMBERED
    ),
    # A number beyond float64.
    rows_of(Status.COMPARED, peir=st.sampled_from([None, math.nan]), verdict=st.sampled_from(DIFFERING)),
    rows_of(Status.CONSTANT_REFERENCE, peir=NONE, rel_l2=PEIRS, verdict=NUMBERED),
    rows_of(Status.CONSTANT_REFERENCE, peir=NONE, verdict=st.sampled_from(DIFFERING)),
    rows_of(Status.NON_FINITE, peir=PEIRS, non_finite_same=st.just(True)),
    rows_of(Status.NON_FINITE, peir=MAYBE, verdict=st.sampled_from(DIFFERING), non_finite_same=st.just(False)),
    rows_of(Status.SHAPE_MISMATCH, peir=NONE, verdict=st.sampled_from(DIFFERING)),
    rows_of(Status.REFERENCE_ONLY, peir=NONE, verdict=st.just(Verdict.UNMATCHED)),
)


@given(st.lists(ANY_ROW, min_size=1, max_size=5), st.sampled_from([0.0, 0.1, 0.15, 0.25, 1.0]))
def test_what_passes_merged_passes_in_every_sample(rows: list[Row], limit: float) -> None:
    total = rows[0]
    for other in rows[1:]:
        total = merged(total, other)
    assert not passes(total, limit) or all(passes(one, limit) for one in rows)


def argument(sample: int, peir: float | None, status: Status = Status.COMPARED, order: int = 1) -> Argument:
    return Argument(
        module="a", call=0, argument="mask", caller="", status=status, order=order, sample=sample, peir=peir
    )


def test_arguments_keep_the_worst() -> None:
    small, large = argument(0, 0.1), argument(1, 0.2, order=4)
    odd = argument(2, None, Status.SHAPE_MISMATCH)
    assert (worse(small, large).sample, worse(large, small).samples, worse(small, large).order) == (1, 2, 4)
    assert worse(worse(large, odd), small).status is Status.SHAPE_MISMATCH
    assert worse(argument(3, math.nan), large).sample == 3


def test_samples_may_make_other_calls() -> None:
    total = Aggregate()
    total.add([row(0, order=0), row(0, module="b", order=1), row(0, module="d", order=2)], [])
    more = [row(1, order=0), row(1, module="b", order=1), row(1, module="c", order=2), row(1, module="d", order=3)]
    total.add(more, [argument(1, 0.1)])
    found = [(one.module, one.samples, one.order) for one in total.rows()]
    assert found == [("a", 2, 0), ("b", 2, 1), ("c", 1, 2), ("d", 2, 3)]
    assert [one.samples for one in total.arguments()] == [1]


def test_what_each_side_calls_elsewhere_stays_two_rows() -> None:
    mine = row(verdict=Verdict.UNMATCHED, status=Status.REFERENCE_ONLY, peir=None)
    theirs = replace(mine, status=Status.CANDIDATE_ONLY, order=5)
    total = Aggregate()
    for sample in range(3):
        # One path may be called twice by the candidate alone, under two wrappers.
        total.add([replace(one, sample=sample) for one in (mine, theirs, theirs)], [])
    assert [(one.status, one.samples) for one in total.rows()] == [
        (Status.REFERENCE_ONLY, 3), (Status.CANDIDATE_ONLY, 3), (Status.CANDIDATE_ONLY, 3)
    ]  # fmt: skip


def test_joined_aggregates_are_one() -> None:
    parts = [Aggregate(), Aggregate()]
    whole = Aggregate()
    for index, part in enumerate(parts):
        for sample in (index, index + 2):
            for one in (part, whole):
                one.add([measured([1.0 + sample, 4.0], sample)], [argument(sample, 0.1 * sample)])
    parts[0].join(parts[1])
    (joined,), (expected,) = parts[0].rows(), whole.rows()
    assert (joined.sample, joined.samples) == (expected.sample, 4)
    assert joined.mean == pytest.approx(expected.mean)
    assert [(one.sample, one.samples) for one in parts[0].arguments()] == [(3, 4)]


# The same through a run of two models.


class Clamped(Chain):
    """Computes what `Chain` does as long as what comes in is small."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.clamp(-3, 3))


def clamped(model: Chain) -> Clamped:
    other = Clamped()
    other.load_state_dict(model.state_dict())
    return other


def outputs(model: torch.nn.Module, samples: Sequence[torch.Tensor]) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        return [model(sample.clone()).double().numpy() for sample in samples]


def test_a_run_over_samples_is_the_run_over_their_elements() -> None:
    model = Chain()
    other = twin(model)
    with torch.no_grad():
        other.second.weight.mul_(1.01)  # type: ignore[union-attr, operator]
    samples = [torch.randn(n, 8) for n in (2, 5, 1, 300)]
    report = qtrace.trace(model, other, samples, local=False)
    r, c = outputs(model, samples), outputs(other, samples)
    e = np.concatenate([np.abs(x - y).ravel() for x, y in zip(r, c, strict=True)])
    root = report.row("")
    assert (root.samples, root.elements) == (4, e.size)
    for name, value in {"mean": e.mean(), "min": e.min(), "max": e.max(), "stddev": e.std()}.items():
        assert getattr(root, name) == pytest.approx(value, rel=1e-6), name
    peirs = [np.abs(x - y).max() / np.ptp(x) for x, y in zip(r, c, strict=True)]
    assert root.sample == int(np.argmax(peirs))
    assert root.peir == pytest.approx(max(peirs), rel=1e-6)
    rel = [np.linalg.norm(x - y) / np.linalg.norm(x) for x, y in zip(r, c, strict=True)]
    assert root.rel_l2 == pytest.approx(max(rel), rel=1e-6)
    assert len(report.rows) == len(qtrace.trace(model, other, samples[0], local=False).rows)


def test_the_worst_sample_is_told_and_the_first_that_differs_is_looked_into() -> None:
    model = Chain()
    samples = [torch.rand(2, 8), torch.full((2, 8), 4.0), torch.full((2, 8), 9.0), torch.rand(2, 8)]
    report = qtrace.trace(model, clamped(model), samples)
    assert report.outcome is Outcome.FAULT
    assert report.row("").sample == 2
    assert report.row("").verdict not in AGREEING
    assert any("samples 2 differ as well: only 1 was looked into" in warning for warning in report.warnings)
    assert {row.samples for row in report.rows} == {4}
    assert next((one.module, one.argument, one.sample, one.samples) for one in report.arguments) == (
        "first",
        "input",
        2,
        2,
    )
    alone = qtrace.trace(model, clamped(model), samples[1])
    assert [(f.module, f.kind) for f in report.findings] == [(f.module, f.kind) for f in alone.findings] != []
    assert {row.module: row.peir_local for row in report.rows} == {row.module: row.peir_local for row in alone.rows}


def test_nan_in_one_sample_is_not_averaged_away() -> None:
    class Broken(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            return out.masked_fill(x.sum() > 20, float("nan"))

    model, other = Chain(), Broken()
    other.load_state_dict(model.state_dict())
    report = qtrace.trace(model, other, [torch.rand(2, 8), torch.full((2, 8), 2.0), torch.rand(2, 8)])
    root = report.row("")
    assert (root.status, root.verdict, root.sample) == (Status.NON_FINITE, Verdict.NON_FINITE, 1)
    assert (root.non_finite, root.elements, root.mean) == ((0, 16), 32, 0.0)
    assert report.outcome is Outcome.FAULT


class Deeper(torch.nn.Module):
    """Calls its layer as often as its input is long."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(len(x)):
            x = self.layer(x)
        return x


def test_calls_that_only_some_samples_make_say_of_how_many_they_are() -> None:
    model = Deeper()
    report = qtrace.trace(model, twin(model), [torch.randn(n, 4) for n in (1, 3, 2)])
    assert [(row.module, row.call, row.samples) for row in report.rows] == [
        ("layer", 0, 3), ("layer", 1, 2), ("layer", 2, 1), ("", 0, 3)
    ]  # fmt: skip
    assert report.coverage.reference_calls == report.coverage.compared == 6
    assert report.outcome is Outcome.CLEAN


def test_what_ran_before_a_model_raised_is_reported() -> None:
    model = Chain()
    with pytest.raises(ForwardError, match="on sample 1") as raised:
        qtrace.trace(model, twin(model), [torch.randn(2, 8), torch.randn(2, 7), torch.randn(2, 8)])
    report = raised.value.report
    assert isinstance(report, qtrace.Report)
    assert {row.samples for row in report.rows} == {1}
    assert report.settings["samples"] == 3


@pytest.mark.parametrize("differs_from", [0, 4, 99])
def test_memory_does_not_grow_with_the_samples(differs_from: int) -> None:
    alive = []

    def progress(done: int, total: int) -> None:
        alive.append(sum(type(one) is Comparison for one in gc.get_objects()))

    model = Chain()
    samples = [torch.full((2, 8), 9.0 if n >= differs_from else 1.0) for n in range(7)]
    gc.collect()
    report = qtrace.trace(model, clamped(model), samples, local=False, progress=progress)
    before = sum(type(one) is Comparison for one in gc.get_objects())
    # One runs, one is kept.
    assert max(alive) - before <= 2
    assert len(report.rows) == 5


def test_a_row_says_which_sample_it_is_from() -> None:
    model = Chain()
    report = qtrace.trace(model, clamped(model), [torch.rand(2, 8), torch.full((2, 8), 9.0)], local=False)
    assert report.row("", sample=1) is report.row("")
    with pytest.raises(UsageError, match="from sample 1, the worst of 2, not from sample 0; trace that sample alone"):
        report.row("", sample=0)
    assert loads(dumps(report)).rows == report.rows
