"""How facts of quantization read: under a row, and with `--inspect`."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Group

from qtrace.report.diagnosis_panel import plain
from qtrace.report.notes import notes
from qtrace.report.records import QuantFacts, Quantizer, QuantProblem, QuantProblemKind, Row, Status, TensorSpec
from qtrace.report.trace_listing import quantizer_listing

PROBLEM = QuantProblem(QuantProblemKind.CLIPPED, "40.00% lie outside", "widen the range")
OUTPUT = Quantizer(
    name="act_out", of="output", dtype="uint8", scheme="per tensor", scales=1, scale=(0.5, 0.5), problems=(PROBLEM,)
)
WEIGHT = Quantizer(
    name="weight", of="weight", dtype="int4", scheme="per channel", axis=0, scales=2, scale=(0.25, 0.5), saturated=0.25
)
FACTS = QuantFacts("tico", (WEIGHT, OUTPUT))
ROW = Row(module="layers.0", call=0, output="", type="Linear", order=0, status=Status.COMPARED, quantization=FACTS)


def listing(*inspect: str) -> str:
    return plain(Group(*quantizer_listing([ROW, replace(ROW, call=1)], inspect, width=100)), width=100)


def test_a_row_says_how_it_quantizes_and_what_is_wrong() -> None:
    assert notes(ROW) == ["weight int4, output uint8, act_out clipped"]
    assert notes(replace(ROW, quantization=None)) == []


def test_a_quantized_output_is_not_said_twice() -> None:
    row = replace(ROW, reference=TensorSpec((2, 3), "float32"), candidate=TensorSpec((2, 3), "quint8"))
    assert notes(row) == ["weight int4, output uint8, act_out clipped"]
    assert notes(replace(row, quantization=None)) == ["float32 [2,3] / quint8 [2,3]"]


def test_a_tensor_that_hands_out_no_numbers_says_so() -> None:
    spec = TensorSpec((2, 3), "float32")
    row = replace(ROW, reference=spec, candidate=spec, status=Status.STRUCTURE_MISMATCH, quantization=None)
    assert notes(row) == ["structure mismatch", "float32 [2,3] without values that can be read"]


def test_inspected_modules_are_listed_once() -> None:
    text = listing("layers.*")
    assert text.count("layers.0  tico") == 1
    assert "weight: int4 per channel (axis 0), scale 0.25 to 0.5, 25.00% saturated" in text
    assert "quantizer act_out (uint8): clipped: 40.00% lie outside; widen the range" in text


def test_nothing_is_listed_where_nothing_is_inspected() -> None:
    assert listing() == ""
    assert listing("other") == ""


def test_what_several_quantizers_have_in_common_is_said_once() -> None:
    twice = QuantFacts("tico", (OUTPUT, replace(OUTPUT, name="act_in")))
    assert [said for _, said in twice.sentences()] == [
        "quantizers act_out, act_in (uint8): clipped: 40.00% lie outside; widen the range"
    ]
