"""The facts of a model in TICO's wrappers, end to end: what is wrong with a quantizer is named in the finding."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.engine.samples import Sample
from qtrace.report.records import loads
from qtrace.report.records.codec import dumps
from qtrace.toolkits.tico import wrap

pytest.importorskip("tico")


def reference() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 16)]
        # Columns of all sizes: a scale taken along the wrong axis is far off.
        layers[2].weight.data.mul_(torch.logspace(-1, 0, 48))  # type: ignore[operator]
    return nn.Sequential(OrderedDict(zip(("a", "act", "b", "last", "c"), layers, strict=True))).eval()


def inputs() -> torch.Tensor:
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(1))


def quantized() -> Any:
    return wrap(copy.deepcopy(reference()), [Sample((inputs(),))], quantize=True)


def test_facts_are_on_the_rows_and_survive_a_report() -> None:
    report = qtrace.trace(reference(), quantized(), inputs())
    (row,) = [row for row in report.rows if row.module == "b"]
    assert row.quantization is not None
    assert row.quantization.toolkit == "tico"
    weights, taken, returned = row.quantization.quantizers
    assert (weights.of, weights.dtype, weights.scheme, weights.axis) == ("weight", "uint8", "per channel", 0)
    assert (taken.of, returned.of) == ("input", "output")
    assert returned.rounding_peir == pytest.approx(1 / 255 / 12**0.5, rel=0.05)
    assert not list(row.quantization.problems())
    assert not any("quantizer" in note for note in report.static)
    again = loads(dumps(report))
    assert next(other for other in again.rows if other.module == "b").quantization == row.quantization


def test_wrapped_and_not_quantized_has_no_facts() -> None:
    candidate = wrap(copy.deepcopy(reference()), [Sample((inputs(),))])
    report = qtrace.trace(reference(), candidate, inputs())
    assert report.outcome == "clean"
    assert all(row.quantization is None for row in report.rows)


def test_a_single_pass_reads_none() -> None:
    report = qtrace.trace(reference(), quantized(), inputs(), local=False)
    assert all(row.quantization is None for row in report.rows)


@pytest.mark.parametrize(
    ("spoiled", "kind", "remedy"),
    [
        ("clipped", "act_out (uint8): clipped: ", "widen the range"),
        ("one", "act_out (uint8): uncalibrated: its scale is 1", "calibrate on"),
        ("wide", "act_out (uint8): dead range: ", "narrow the range"),
        ("axis", "weight (uint8): wrong axis: its scales are those of axis 1", "along axis 0"),
    ],
)
def test_what_is_wrong_is_evidence_with_its_remedy(spoiled: str, kind: str, remedy: str) -> None:
    candidate = quantized()
    layer = candidate.b.wrapped
    output, own = layer.obs_act_out, layer.obs_weight
    if spoiled == "clipped":
        output.load_qparams(output._cached_scale * 0.2, output._cached_zp)
    elif spoiled == "one":
        output.load_qparams(torch.tensor(1.0), torch.tensor(0))
    elif spoiled == "wide":
        output.load_qparams(output._cached_scale * 40, output._cached_zp)
    else:
        own.load_qparams(layer.module.weight.detach().abs().amax(0) / 127, torch.full((48,), 128))
    report = qtrace.trace(reference(), candidate, inputs())
    found = report.findings[0]
    assert found.module == "b"
    (said,) = [line for line in found.evidence if line.startswith("quantizer")]
    assert kind in said
    assert remedy in said


def test_a_model_that_was_never_calibrated_is_named_so() -> None:
    from tico.quantization import convert, prepare
    from tico.quantization.config.ptq import PTQConfig

    candidate = convert(prepare(copy.deepcopy(reference()), PTQConfig()).eval())
    report = qtrace.trace(reference(), candidate, inputs())
    assert report.findings
    for finding in report.findings:
        assert any("uncalibrated: it never saw a value; calibrate on" in line for line in finding.evidence)
    assert any("uncalibrated" in note for note in report.static)
