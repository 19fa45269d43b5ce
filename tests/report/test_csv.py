"""CSV, as pandas, the standard library and a spreadsheet read it."""

from __future__ import annotations

import csv as reader
import dataclasses
import io
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.report.csv import COLUMNS, csv
from qtrace.report.records import GateVerdict, ReportData, Row
from qtrace.report.text import one_line
from tests.helpers.golden_reports import REPORTS, mask_bug, odds
from tests.report.test_formats import HOSTILE, gate, named

# Fields of a row that are columns under other names, since a cell holds one value.
SPLIT = {"reference", "candidate", "non_finite"}


def lines_of(report: ReportData, verdict: GateVerdict | None = None) -> list[dict[str, str]]:
    return list(reader.DictReader(io.StringIO(csv(report, verdict), newline="")))


@pytest.mark.parametrize("name", REPORTS)
def test_there_is_a_line_for_each_row_in_execution_order(name: str) -> None:
    report = REPORTS[name]()
    frame = pd.read_csv(io.StringIO(csv(report)), keep_default_na=False)
    assert list(frame.columns) == list(COLUMNS)
    ordered = sorted(report.rows, key=lambda row: row.order)
    assert list(frame["module"]) == [row.module or "<root>" for row in ordered]
    assert [str(call) for call in frame["call"]] == [str(row.call) for row in ordered]


def test_every_field_of_a_row_is_a_column() -> None:
    fields = {field.name for field in dataclasses.fields(Row)}
    assert fields - set(COLUMNS) == SPLIT
    assert {column for column in COLUMNS if column.split("_")[0] in SPLIT} < set(COLUMNS)


def test_numbers_have_all_their_digits_and_none_is_an_empty_cell() -> None:
    frame = pd.read_csv(io.StringIO(csv(mask_bug())))
    for field in ("mean", "max", "stddev", "peir", "peir_in", "peir_local", "cosine", "sqnr_db", "rel_l2"):
        known = [getattr(row, field) for row in mask_bug().rows]
        assert [None if pd.isna(value) else value for value in frame[field]] == known
    assert frame["peir_related"].isna().all()


def test_what_is_no_number_is_told() -> None:
    told = {line["module"]: line for line in lines_of(odds())}
    assert told["decoder.shape"]["status"] == "shape_mismatch"
    assert (told["decoder.shape"]["reference_shape"], told["decoder.shape"]["candidate_shape"]) == ("[2,3]", "[2,4]")
    assert (told["decoder.nan"]["non_finite_reference"], told["decoder.nan"]["non_finite_candidate"]) == ("0", "3")
    assert told["decoder.pair"]["candidate_dtype"] == "NoneType"
    assert told["encoder.norm"]["relation"] == "layout: squeeze 2 3, permute 0 2 1 3"
    assert told["decoder.skipped"]["candidate_dtype"] == ""
    assert told["encoder.step"]["verdict"] == "equal"


def test_with_a_gate_the_rules_that_a_row_violates_are_named() -> None:
    told = {line["module"]: line["violations"] for line in lines_of(mask_bug(), gate())}
    assert told["model.language_model.layers.0"] == "max_peir"
    assert told["model.visual.blocks.0.attn.qkv"] == "overrides model.visual.**: min_cosine"
    assert told["lm_head"] == ""
    assert "violations" not in lines_of(mask_bug())[0]


def without_numbers(line: dict[str, str]) -> dict[str, str]:
    texts = ("module", "output", "type", "reference_dtype", "candidate_dtype", "relation", "violations")
    return {name: value for name, value in line.items() if name in texts}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_cell_and_no_formula(name: str) -> None:
    lines = lines_of(*named(name))
    assert len(lines) == 3
    cell = one_line(name)
    expected = f"'{cell}" if cell.lstrip()[:1] in ("=", "+", "-", "@") and cell else cell
    for line in lines:
        assert line["output"] == line["type"] == expected
        assert line["module"] == (expected or "<root>")
        assert None not in line.values()
        assert None not in line


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_no_text_is_a_formula_or_breaks_a_line(name: str) -> None:
    report, verdict = named(name)
    text = csv(report, verdict)
    assert text.count("\n") == len(text.splitlines()) == 4
    for line in lines_of(report, verdict):
        for value in without_numbers(line).values():
            assert not value.lstrip().startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_does_not_exist_is_an_empty_cell(value: float) -> None:
    fields: dict[str, Any] = {"peir": value, "mean": value}
    row = dataclasses.replace(odds().rows[0], **fields)
    (line,) = lines_of(dataclasses.replace(odds(), rows=(row,)))
    assert (line["peir"], line["mean"]) == ("", "")
