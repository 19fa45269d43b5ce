"""The terminal report: golden text at two widths, and what must hold of any report's text."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable

import pytest
from rich.console import Console, RenderableType

from qtrace.records import ReportData, Row
from qtrace.render import to_html
from qtrace.render.leap import first_leap
from qtrace.render.numbers import number
from qtrace.render.outcome import outcome
from qtrace.render.selection import TOP, View, select
from qtrace.render.terminal import render, results
from tests import golden_files
from tests.golden_reports import REPORTS, mask_bug, odds

WIDTHS = (80, 120)
# What stands in the table above the path's own line: the path (whole or cut), then at least five numbers.
ROW = re.compile(r"^(?P<path>[^\s│╭╰]\S*) (?P<rest>.*)$")


def text_of(part: RenderableType | Iterable[RenderableType], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    for one in [part] if not isinstance(part, (list, tuple)) else part:
        console.print(one)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown_rows(text: str, report: ReportData) -> list[Row]:
    """Read the ranked table back: the rows whose path and numbers stand in a line, in the text's order."""
    table = text.split("PEIR ↓")[1].split("|reference - candidate|")[0]
    found = []
    left = list(report.rows)
    for line in table.splitlines():
        match = ROW.match(line)
        if match is None:
            continue
        path = match["path"].removeprefix("…")
        cells = match["rest"].split()
        row = next((row for row in left if _is_shown_by(row, path, cells)), None)
        if row is not None:
            left.remove(row)
            found.append(row)
    return found


def _is_shown_by(row: Row, path: str, cells: list[str]) -> bool:
    numbers = [number(value) for value in (row.mean, row.min, row.max, row.stddev, row.peir)]
    whole = (row.module or "<root>") == path or (row.module or "<root>").endswith("." + path)
    together = any(cells[n : n + 5] == numbers for n in range(len(cells) - 4))
    return whole and together


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_reads_as_its_golden_file(name: str, width: int) -> None:
    text = text_of(render(REPORTS[name](), View(), width=width), width)
    golden_files.same_as_golden(text, f"{name}.{width}.txt")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    text = text_of(render(REPORTS[name](), View(), width=width), 1000)
    table = text.split("PEIR ↓")[1].split("|reference - candidate|")[0]
    assert max(len(line.rstrip()) for line in table.splitlines()) <= width


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("top", [1, 5, 20, 0])
def test_the_texts_numbers_are_the_records(width: int, top: int) -> None:
    report = mask_bug()
    text = text_of(list(results(report, View(top=top), width=width)), width)
    rows = shown_rows(text, report)
    assert rows == list(select(report.rows, View(top=top)).rows)
    peirs = [row.peir or 0.0 for row in rows]
    assert peirs == sorted(peirs, reverse=True)
    rest = re.search(r"… and (\d+) more rows; --top 0 shows all", text)
    assert len(rows) + (int(rest[1]) if rest else 0) == len(report.rows)
    assert (rest is None) == (top == 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_first_leap_and_largest_peir_are_shown_and_marked_even_in_one_row(width: int) -> None:
    report = mask_bug()
    text = text_of(list(results(report, View(top=1), width=width)), width)
    rows = [(row.module, row.peir) for row in shown_rows(text, report)]
    assert rows == [("lm_head", 0.618), ("model.language_model.layers.0.self_attn.o_proj", 0.578)]
    assert text.index("lm_head") < text.index("largest PEIR")
    assert text.index("self_attn.o_proj") < text.index("first leap")


def test_a_path_is_cut_on_the_left_and_never_in_its_last_component() -> None:
    report = odds()
    lines = text_of(list(results(report, View(top=0), width=80)), 80).splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("…a_component"))
    parts = [line.split()[0] for line in lines[place : place + 2]]
    assert "".join(parts) == "…a_component_whose_name_is_longer_than_its_column"
    assert "…layers.0.self_attn.o_proj" in text_of(list(results(mask_bug(), View(), width=80)), 80)


@pytest.mark.parametrize("name", REPORTS)
def test_coverage_in_the_text_adds_up(name: str) -> None:
    report = REPORTS[name]()
    text = text_of(list(results(report, View(), width=120)), 120)
    line = re.search(r"compared (\d+) of (\d+) calls \(([\d.]+) %\)", text)
    assert line is not None
    compared, calls, percent = int(line[1]), int(line[2]), float(line[3])
    reasons = [int(n) for n in re.findall(r"^  (\d+) \w", text.split("not compared:")[-1], re.MULTILINE)]
    if "not compared:" in text:
        assert compared + sum(reasons) == calls
    assert percent <= 100 * compared / calls < percent + 0.1
    assert (percent == 100) == (compared == calls)


def test_few_uncompared_modules_are_named_and_many_are_counted() -> None:
    few = text_of(list(results(mask_bug(), View(), width=200)), 200)
    assert "2 without a partner in the other model: model.language_model.rotary_emb, model.visual.rotary_pos_emb" in few
    many = text_of(list(results(REPORTS["inconclusive"](), View(), width=200)), 200)
    assert "encoder.layers.3 and 2 more modules (`qtrace modules` lists them)" in many


def test_execution_order_shows_all_rows_as_the_reference_ran() -> None:
    report = mask_bug()
    assert len(report.rows) > TOP
    text = text_of(list(results(report, View(execution=True), width=120)), 120)
    assert shown_rows(text, report) == list(report.rows)


def test_every_status_is_said_in_words() -> None:
    text = text_of(list(results(odds(), View(top=0), width=200)), 200)
    for words in (
        "non-finite 0/3",
        "shape mismatch, float32 [2,3] / float32 [2,4]",
        "structure mismatch, float32 [2,3] / None",
        "constant reference",
        "only in the reference",
        "only in the candidate",
        "12.5 % of elements differ",
        "layout: squeeze 2 3, permute 0 2 1 3",
    ):
        assert words in re.sub(r"\s+", " ", text), words


def test_what_no_number_expresses_is_ranked_above_all_numbers() -> None:
    rows = [row.module for row in select(odds().rows, View(top=0)).rows]
    assert rows[:5] == ["decoder.nan", "decoder.shape", "decoder.pair", "decoder.constant", ""]
    assert rows[-2:] == ["decoder.skipped", "decoder.extra"]


def test_arguments_that_one_caller_hands_down_alike_are_one_line() -> None:
    text = text_of(list(results(mask_bug(), View(), width=120)), 120).split("Arguments that differ")[1]
    assert text.count("attention_mask") == 1
    for words in ("model.language_model.layers.0 ", "and 3 more", "[1,1,84,84]", "int64", "all 1", "shape"):
        assert words in text, words


def test_the_outcome_names_the_leap_and_the_argument_before_it() -> None:
    said = " ".join(text_of(outcome(mask_bug()), 80).split())
    assert said.startswith("outcome: fault. The candidate does not compute what the reference computes.")
    assert "First leap: model.language_model.layers.0.self_attn.o_proj, PEIR 5.78e-01, after at most 1.11e-06." in said
    assert (
        "model.language_model calls model.language_model.layers.0 with another attention_mask: "
        "float32 [1,1,84,84] in the reference, int64 [1,84] in the candidate."
    ) in said


def test_an_argument_of_a_call_that_began_after_the_leap_is_not_named() -> None:
    report = mask_bug()
    late = tuple(dataclasses.replace(argument, order=99) for argument in report.arguments)
    assert "with another" not in text_of(outcome(dataclasses.replace(report, arguments=late)), 80)


def test_an_argument_of_the_same_shape_is_told_by_its_values() -> None:
    report = mask_bug()
    argument = dataclasses.replace(report.arguments[0], candidate=report.arguments[0].reference, max=2.5, peir=0.1)
    said = " ".join(text_of(outcome(dataclasses.replace(report, arguments=(argument,))), 80).split())
    assert "float32 [1,1,84,84] on both sides, |reference - candidate| up to 2.50e+00." in said


def test_a_difference_that_is_undone_is_no_leap() -> None:
    report = REPORTS["clean"]()
    assert first_leap(report.rows) is None
    said = " ".join(text_of(outcome(report), 80).split())
    assert (
        "Differences in 1 row on the way are undone before the output, "
        "most at model.visual.blocks.0.attn.qkv, PEIR 3.40e-01."
    ) in said


def test_a_partial_report_says_why_it_ends() -> None:
    said = " ".join(text_of(outcome(REPORTS["partial"]()), 80).split())
    assert said == (
        "outcome: inconclusive. The run ended early, after 2 rows: "
        "the candidate raised ValueError in layers.1 (Block): too bad (models.py:7)."
    )


def test_too_little_compared_points_to_the_modules_command() -> None:
    said = " ".join(text_of(outcome(REPORTS["inconclusive"]()), 80).split())
    assert "Too little was compared to say: 2 of 12 calls (16.6 %)." in said
    assert "`qtrace modules`, with the same options, shows how names were aligned" in said


def test_colour_is_only_decoration() -> None:
    report = mask_bug()
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    console.print(render(report, View(), width=80))
    assert isinstance(console.file, io.StringIO)
    coloured = console.file.getvalue()
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == text_of(render(report, View(), width=80), 80)


def test_a_notebook_shows_the_terminals_report() -> None:
    html = to_html(mask_bug())
    assert html.startswith("<pre ")
    assert "&lt;root&gt;" in html
    assert "self_attn.o_proj" in html
