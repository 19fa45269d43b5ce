"""The terminal report: golden text at two widths, and what must hold of any report's text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import pytest
from rich.console import Console, RenderableType

from qtrace.report import to_html
from qtrace.report.diagnosis_panel import diagnosis
from qtrace.report.records import ReportData, Row
from qtrace.report.table import TOP, View, select
from qtrace.report.terminal import render, results, table
from qtrace.report.text import number
from tests.helpers import golden_files
from tests.helpers.golden_reports import REPORTS, blameless, mask_bug, odds

WIDTHS = (80, 120)
TYPED = ("configs/pair.yaml", "--seed", "3")
# What stands in the table above the path's own line: the path (whole or cut), then at least five numbers.
ROW = re.compile(r"^(?P<path>[^\s│╭╰]\S*) (?P<rest>.*)$")


def text_of(part: RenderableType | Iterable[RenderableType], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    for one in [part] if not isinstance(part, (list, tuple)) else part:
        console.print(one)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def statistics_of(text: str) -> str:
    """Return the body of the table that holds the statistics, which is the last of the rows' tables."""
    return re.split(r"^ *module .*$", text.split("|reference - candidate|; PEIR")[0], flags=re.MULTILINE)[-1]


def shown_rows(text: str, report: ReportData) -> list[Row]:
    """Read the ranked table back: the rows whose path and numbers stand in a line, in the text's order."""
    table = statistics_of(text)
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
    places = [n for n in range(len(cells) - 4) if cells[n : n + 4] == numbers[:4]]
    return whole and any(numbers[4] in cells[n + 4 :] for n in places)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_reads_as_its_golden_file(name: str, width: int) -> None:
    text = text_of(render(REPORTS[name](), View(command=TYPED), width=width), width)
    golden_files.same_as_golden(text, f"{name}.{width}.txt")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    text = text_of(list(table(REPORTS[name](), View(), width=width)), 1000).split("|reference - candidate|; PEIR")[0]
    assert max(len(line.rstrip()) for line in text.splitlines() if not line.startswith("… ")) <= width
    panel = text_of(diagnosis(REPORTS[name](), View(command=TYPED), width=width), width)
    assert max(map(len, panel.splitlines())) <= width


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("top", [1, 5, 20, 0])
def test_the_texts_numbers_are_the_records(width: int, top: int) -> None:
    report = blameless()
    text = text_of(list(results(report, View(top=top), width=width)), width)
    rows = shown_rows(text, report)
    assert rows == list(select(report, View(top=top)).rows)
    peirs = [row.peir or 0.0 for row in rows]
    assert peirs == sorted(peirs, reverse=True)
    rest = re.search(r"… and (\d+) more rows; --top 0 shows all", text)
    assert len(rows) + (int(rest[1]) if rest else 0) == len(report.rows)
    assert (rest is None) == (top == 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_first_leap_and_largest_peir_are_shown_and_marked_even_in_one_row(width: int) -> None:
    report = blameless()
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
    report = blameless()
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
    rows = [row.module for row in select(odds(), View(top=0)).rows]
    assert rows[:5] == ["decoder.nan", "decoder.shape", "decoder.pair", "decoder.constant", ""]
    assert rows[-2:] == ["decoder.skipped", "decoder.extra"]


def test_arguments_that_one_caller_hands_down_alike_are_one_line() -> None:
    text = text_of(list(results(mask_bug(), View(), width=120)), 120).split("Arguments that differ")[1]
    assert text.count("attention_mask") == 1
    for words in ("model.language_model.layers.0 ", "and 3 more", "[1,1,84,84]", "int64", "all 1", "shape"):
        assert words in text, words


def test_colour_is_only_decoration() -> None:
    report = mask_bug()
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    console.print(render(report, View(), width=80))
    assert isinstance(console.file, io.StringIO)
    coloured = console.file.getvalue()
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == text_of(render(report, View(), width=80), 80)


def test_a_notebook_shows_the_terminals_report() -> None:
    html = to_html(blameless())
    assert html.startswith("<pre ")
    assert "&lt;root&gt;" in html
    assert "self_attn.o_proj" in html
