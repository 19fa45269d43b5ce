"""Every case of the fault bench: it builds, its fault is real or its pair agrees, and its answer can be given."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from bench.faults.case import CASES, KINDS, Case, Pair
from bench.faults.catalogue import cases
from bench.faults.fake_quantization import FakeQuantLinear
from qtrace.engine.samples import as_samples
from qtrace.report.records import Outcome
from tests.helpers.fault_bench import difference, tensors

ALL = cases()
# Rounding of float32 over a few layers, as PEIR of the final outputs; a fault must be well above it.
AGREES, DIFFERS = 3e-6, 5e-6
# A candidate of fewer bits: wrong by that much and no more.
COARSE = 0.25
# A faulty quantized layer's error against the largest of its healthy peers.
STANDS_OUT = 4.0


def _outputs(model: Any, case: Case, inputs: Any) -> list[torch.Tensor]:
    (sample,) = as_samples(inputs)
    with torch.no_grad():
        return list(tensors(getattr(model, case.call)(*sample.args, **sample.kwargs)))


def _difference(pair: Pair, case: Case) -> float:
    """Return the largest PEIR between the final outputs; infinite for other shapes or values that are not finite."""
    references, candidates = (_outputs(model, case, pair.inputs) for model in (pair.reference, pair.candidate))
    assert references, "the model returns no tensor"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in references), "the reference itself is not finite"
    return difference(references, candidates)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_case_is_what_it_says(case: Case) -> None:
    pair = case.build()
    if "raises" in case.kinds:
        _outputs(pair.reference, case, pair.inputs)
        with pytest.raises(Exception, match=r"."):
            _outputs(pair.candidate, case, pair.inputs)
        return
    if case.fault == "inconclusive":
        _outputs(pair.candidate, case, pair.inputs)
        return
    found = _difference(pair, case)
    if case.answers or case.fault == "drift":
        assert found > DIFFERS
    elif Outcome.DRIFT.value in case.outcomes:
        assert found < COARSE
    else:
        assert found < AGREES


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_answer_can_be_given(case: Case) -> None:
    pair = case.build()
    paths = dict(pair.reference.named_modules())
    assert case.answers <= set(paths), "an answer is no module of the reference"
    assert case.answers == frozenset().union(*case.faults)
    assert case.kinds <= set(KINDS)
    assert case.outcomes <= {outcome.value for outcome in Outcome}
    assert len(case.why) > 20
    owned = {tensor.data_ptr() for tensor in pair.reference.parameters()}
    assert not owned & {tensor.data_ptr() for tensor in pair.candidate.parameters()}, "the sides share a parameter"
    if case.answers and case.fault not in ("several",):
        assert not pair.reference.training


@pytest.mark.parametrize("case", [case for case in ALL if case.reason], ids=lambda case: case.id)
def test_reason_is_more_than_the_place(case: Case) -> None:
    """Neither the path of any module nor the class of the answer, nor the argument's name, tells a reason."""
    assert case.answers, "only a fault has a reason"
    escapes = re.compile(r"\\.")
    assert escapes.sub("", case.reason) == escapes.sub("", case.reason).lower(), "it is searched in lower-cased text"
    modules = dict(case.build().reference.named_modules())
    answers = [*case.answers, *(type(modules[path]).__name__ for path in case.answers), case.argument or ""]
    for names in (modules, answers):
        assert not re.search(case.reason, "\n".join(names).lower())


def test_building_leaves_the_shared_models_alone() -> None:
    """A case that changed the models which all cases are copied from would change those that come after it."""
    case = CASES["llama/identical"]
    before = case.build()
    for other in cases("llama/*"):
        other.build()
    assert _difference(Pair(before.reference, case.build().candidate, before.inputs), case) == 0.0


def test_bench_is_as_wide_as_promised() -> None:
    faults = [case for case in ALL if case.answers]
    assert len(faults) >= 48
    assert len({case.architecture for case in faults}) >= 6
    assert sum(case.fault == "correct" for case in ALL) >= 14
    assert sum(len(case.faults) > 1 for case in ALL) >= 4
    assert sum(bool(case.reason) for case in faults) >= 240
    for kind in ("drift", "inconclusive"):
        assert sum(case.fault == kind for case in ALL) >= 2
    for kind in KINDS:
        assert any(kind in case.kinds for case in faults), f"no fault of kind {kind}"


@pytest.mark.parametrize("case", [case for case in cases("quantized/*") if case.answers], ids=lambda case: case.id)
def test_quantized_fault_stands_out_among_its_peers(case: Case) -> None:
    """On the reference's own inputs, the faulty layer's error is far from what rounding gives its peers."""
    pair = case.build()
    inputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path, module in pair.reference.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, output, path=path: inputs.__setitem__(path, (args[0], output)))
    _outputs(pair.reference, case, pair.inputs)
    errors = {}
    for path, (given, wanted) in inputs.items():
        layer = pair.at(path)
        assert isinstance(layer, FakeQuantLinear)
        with torch.no_grad():
            errors[path] = float((layer(given) - wanted).norm() / wanted.norm())
    peers = max(error for path, error in errors.items() if path not in case.answers)
    assert peers < 0.05
    for path in case.answers & set(errors):
        assert not errors[path] < STANDS_OUT * peers
