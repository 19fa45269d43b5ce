"""The pieces that a report is rendered from: paths, numbers, ranking, the leap, and the file formats."""

from __future__ import annotations

import dataclasses
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrace.errors import OutputError, UsageError
from qtrace.report import check, save
from qtrace.report.columns import SORT_KEYS, first_leap, sort_key
from qtrace.report.records import Row, Status, Verdict, dumps, loads
from qtrace.report.table import View, rank, select
from qtrace.report.text import DECADES, apart, bar, number, pattern, share, shorten, shorten_all
from tests.helpers.golden_reports import Rows, blameless, odds

NAMES = st.lists(st.text("abc_0", min_size=1, max_size=9), min_size=1, max_size=7)


@given(NAMES, st.integers(1, 40))
def test_a_shortened_path_ends_in_whole_components(components: list[str], width: int) -> None:
    path = ".".join(components)
    short = shorten(path, width)
    kept = short.removeprefix("…").split(".")
    assert components[-len(kept) :] == kept
    assert short.startswith("…") == (len(kept) < len(components))
    assert len(short) <= width or len(kept) == 1


def test_paths_that_would_look_the_same_stay_whole() -> None:
    short = shorten_all(["encoder.layers.0.out", "decoder.layers.0.out", "a.long.path.of.another.end"], 15)
    assert short["encoder.layers.0.out"] == "encoder.layers.0.out"
    assert short["decoder.layers.0.out"] == "decoder.layers.0.out"
    assert short["a.long.path.of.another.end"] == "…of.another.end"


def test_the_root_has_a_name() -> None:
    assert shorten("", 3) == "<root>"


@given(st.floats(1e-12, 1e3), st.floats(0, 1e-3))
def test_a_value_above_its_limit_reads_as_above_it(limit: float, excess: float) -> None:
    value = limit * (1 + excess)
    shown, bar = apart(value, limit)
    assert (float(shown) > float(bar)) == (value > limit)


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_share_is_never_rounded_up(whole: int, missing: int) -> None:
    part = max(whole - missing, 0)
    text = share(part, whole)
    assert (text == "100 %") == (part == whole)
    assert (text == "0 %") == (part == 0)
    if text not in ("100 %", "0 %", "<0.1 %"):
        assert Fraction(text.split()[0]) / 100 <= Fraction(part, whole)


@given(st.floats(1e-12, 1e6), st.floats(1.0, 1e6))
def test_a_larger_error_never_has_a_shorter_bar(error: float, factor: float) -> None:
    assert len(bar(error)) <= len(bar(error * factor)) <= DECADES


@pytest.mark.parametrize(
    ("error", "blocks"),
    [(None, 0), (0.0, 0), (float("nan"), 0), (9e-9, 0), (1.1e-8, 1), (5e-4, 5), (0.2, 8), (40.0, 8), (float("inf"), 8)],
)
def test_a_bar_has_a_block_for_each_power_of_ten(error: float | None, blocks: int) -> None:
    assert bar(error) == "█" * blocks


def test_paths_that_differ_only_in_numbers_have_a_pattern() -> None:
    assert pattern(["layers.0.mlp", "layers.7.mlp", "layers.11.mlp"]) == "layers.*.mlp"
    assert pattern(["layers.0.mlp", "layers.0.norm"]) == "layers.0.mlp, layers.0.norm"
    assert pattern(["", "layers.0"]) == "<root>, layers.0"


def test_absent_and_zero_are_told_apart() -> None:
    assert (number(None), number(0.0), number(1e-30)) == ("-", "0", "1.00e-30")


def leap_of(*peirs: float, limit: float = 1e-5) -> float | None:
    rows = Rows()
    for place, peir in enumerate(peirs):
        rows.add(f"m{place}", peir, verdict=Verdict.INTRODUCED if peir > limit else Verdict.EQUAL)
    leap = first_leap(rows.rows)
    return None if leap is None else leap.row.peir


@pytest.mark.parametrize(
    ("peirs", "leap"),
    [
        ((1e-6, 2e-6, 0.5, 0.9), 0.5),
        ((1e-6, 0.99e-4, 0.98e-2), None),
        ((1e-6, 1e-4), 1e-4),
        ((1e-8, 9e-6), None),
        ((0.0, 0.0, 2e-5), 2e-5),
        ((3e-2,), 3e-2),
        ((), None),
    ],
)
def test_first_leap(peirs: tuple[float, ...], leap: float | None) -> None:
    assert leap_of(*peirs) == leap


def test_a_difference_that_is_absorbed_is_no_leap_and_does_not_hide_one() -> None:
    rows = Rows()
    rows.add("a.first", 0.3, verdict=Verdict.ABSORBED)
    rows.add("a", 1e-7, "Block")
    rows.add("a.second", 0.4)
    rows.add("", 0.4, "Net")
    leap = first_leap(rows.rows)
    assert leap is not None
    assert (leap.row.module, leap.before) == ("a.second", 1e-7)


def test_a_relation_counts_by_what_remains_under_it() -> None:
    rows = Rows()
    rows.add("scaled", 0.34, peir_related=4e-7, verdict=Verdict.LAYOUT)
    rows.add("wrong", 0.2)
    leap = first_leap(rows.rows)
    assert leap is not None
    assert (leap.row.module, leap.before) == ("wrong", 4e-7)


@pytest.mark.parametrize("key", SORT_KEYS)
def test_every_sort_key_ranks_every_kind_of_row(key: str) -> None:
    rows = odds().rows
    assert sorted(map(id, rank(rows, sort_key(key)))) == sorted(map(id, rows))


def test_higher_is_better_is_ranked_from_the_bottom() -> None:
    values = [row.sqnr_db for row in rank(blameless().rows, "sqnr") if row.sqnr_db is not None]
    assert values == sorted(values)
    peirs = [row.peir for row in rank(blameless().rows, "peir") if row.peir is not None]
    assert peirs == sorted(peirs, reverse=True)


def test_equal_rows_without_a_number_are_ranked_last() -> None:
    equal = rank(blameless().rows, "sqnr")[-1]
    assert (equal.module, equal.sqnr_db, equal.peir) == ("model.language_model.embed_tokens", None, 0.0)


def test_non_finite_values_at_the_same_places_are_ranked_by_their_peir() -> None:
    rows = Rows()
    rows.add("worse", 0.5)
    masked: dict[str, Any] = {"status": Status.NON_FINITE, "non_finite": (6, 6)}
    rows.add("mask", 0.0, verdict=Verdict.EQUAL, **masked)
    rows.add("nan", 1e-9, verdict=Verdict.NON_FINITE, **masked)
    assert [row.module for row in rank(rows.rows, "peir")] == ["nan", "worse", "mask"]


def test_ties_keep_execution_order() -> None:
    rows: list[Row] = [dataclasses.replace(row, peir=0.5) for row in blameless().rows]
    assert rank(rows, "peir") == rows


def test_top_counts_what_it_leaves_out() -> None:
    rows = blameless().rows
    chosen = select(blameless(), View(top=3))
    assert len(chosen.rows) + chosen.rest == len(rows)
    assert chosen.leap in chosen.rows
    assert chosen.largest in chosen.rows


def test_an_unknown_sort_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"--sort 'pear' is no column of the table; did you mean peir"):
        sort_key("pear")


def test_a_report_is_written_in_the_format_of_its_ending(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    save(blameless(), path)
    text = path.read_text(encoding="utf-8")
    assert loads(text).rows == blameless().rows
    assert dumps(loads(text)) == text == dumps(blameless())


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("report.txt", UsageError, "no format has the ending .txt; known: .json, .html, .md,"),
        ("report", UsageError, "no format has a path without an ending; known: .json, .html"),
        ("nowhere/report.json", OutputError, "the folder {tmp}/nowhere does not exist; create it first"),
        ("folder", OutputError, "this is a folder; name a file in it"),
    ],
)
def test_a_place_that_takes_no_report_is_found_before_the_run(
    tmp_path: Path, name: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(error) as caught:
        check([str(tmp_path / name)])
    assert words.format(tmp=tmp_path) in str(caught.value)
    assert str(caught.value).startswith(f"report {tmp_path / name}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_found_before_the_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied; choose another place"):
        check([str(tmp_path / "report.json")])


def test_a_place_that_permissions_do_not_tell_of_is_found_before_the_run() -> None:
    with pytest.raises(OutputError, match=r"report /proc/report\.json: .*; choose another place"):
        check(["/proc/report.json"])


def test_trying_to_open_leaves_everything_as_it_was(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("before")
    check([str(there), str(tmp_path / "new.json")])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("there.json", "before")]


def test_a_report_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"No such file or directory; nothing was written, choose another place"):
        save(blameless(), tmp_path / "gone" / "report.json")


def test_stdout_needs_no_check() -> None:
    check(["-"])
