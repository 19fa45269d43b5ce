"""Stored reports and baselines that are damaged, or that another version wrote: one sentence with file and place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtrace import __version__
from qtrace.errors import SourceError
from qtrace.gate import load_baseline, update
from qtrace.gate.baseline import dump_baseline
from qtrace.report.records import dumps, loads
from tests.helpers.gate_rows import finding, report, row

REPORT = dumps(report(row("a"), row("b", non_finite=(0, 1)), findings=(finding("a"),)))
BASELINE = dump_baseline(update(report(row("a"), row("b"))).baseline)


def changed(text: str, change: Callable[[Any], object]) -> str:
    plain = json.loads(text)
    change(plain)
    return json.dumps(plain)


def test_undamaged_ones_are_read(tmp_path: Path) -> None:
    assert dumps(loads(REPORT)) == REPORT
    (tmp_path / "b.json").write_text(BASELINE)
    assert dump_baseline(load_baseline(tmp_path / "b.json")) == BASELINE


def row_of(plain: Any, place: int = 1) -> Any:
    return plain["rows"][place]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.json: not JSON at line 1, column 1: Expecting value; write the file again"),
        (REPORT[:200], "r.json: not JSON at line "),
        (REPORT.replace('"call": 0', '"call": ', 1), "r.json: not JSON at line "),
        ("[" * 100_000, "r.json: JSON that is nested too deeply; write the file again"),
        ("[]", "r.json: no schema is named, this version reads 'qtrace-report/1'"),
        ('{"schema": "other/1"}', "r.json: schema is 'other/1', this version reads 'qtrace-report/1'"),
        ('{"schema": "qtrace-report/0"}', "r.json: schema is 'qtrace-report/0', this version reads 'qtrace-report/1'"),
        ('{"schema": "qtrace-baseline/1"}', "r.json: schema is 'qtrace-baseline/1', this version reads"),
        (changed(REPORT, lambda plain: plain.pop("rows")), "r.json: the key 'rows' is missing"),
        (changed(REPORT, lambda plain: row_of(plain).pop("module")), "r.json: rows[1]: the key 'module' is missing"),
        (
            changed(REPORT, lambda plain: row_of(plain).update(peir="small")),
            "r.json: rows[1].peir: expected float, found str",
        ),
        (
            changed(REPORT, lambda plain: row_of(plain).update(call=True)),
            "r.json: rows[1].call: expected int, found bool",
        ),
        (
            changed(REPORT, lambda plain: row_of(plain).update(status="fine")),
            "r.json: rows[1].status: 'fine' is none of compared, shape_mismatch, ",
        ),
        (
            changed(REPORT, lambda plain: row_of(plain).update(status=[])),
            "r.json: rows[1].status: [] is none of compared, ",
        ),
        (
            changed(REPORT, lambda plain: row_of(plain).update(non_finite=[1])),
            "r.json: rows[1].non_finite: expected 2 entries, found 1",
        ),
        (
            changed(REPORT, lambda plain: row_of(plain)["reference"].update(shape=["x"])),
            "r.json: rows[1].reference.shape[0]: expected int, found str",
        ),
        (changed(REPORT, lambda plain: plain.update(rows={})), "r.json: rows: expected a list, found dict"),
        (changed(REPORT, lambda plain: plain.update(coverage=3)), "r.json: coverage: expected a mapping, found int"),
        (
            changed(REPORT, lambda plain: plain["coverage"].update(reasons={"empty": "x"})),
            "r.json: coverage.reasons.empty: expected int, found str",
        ),
        (changed(REPORT, lambda plain: plain.update(settings=[])), "r.json: settings: expected a mapping, found list"),
    ],
)
def test_a_damaged_report_is_one_sentence_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        loads(text, where="r.json")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_later_versions_add_to_a_report_is_left_out() -> None:
    text = changed(REPORT, lambda plain: (plain.update(more=1), row_of(plain).update(more={})))
    assert loads(text) == loads(REPORT)


@pytest.mark.parametrize("writer", ["9.1.0", None])
def test_a_report_of_a_newer_schema_is_refused_with_both_versions(writer: str | None) -> None:
    text = changed(REPORT, lambda plain: plain.update(schema="qtrace-report/2", qtrace=writer))
    with pytest.raises(SourceError) as caught:
        loads(text, where="r.json")
    by = "qtrace 9.1.0" if writer else "a newer qtrace"
    assert str(caught.value) == (
        f"r.json: written by {by} under the schema qtrace-report/2; this is qtrace {__version__}, which reads "
        "qtrace-report/1: upgrade qtrace"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<<<<<<< ours\n" + BASELINE, "not JSON at line 1, column 1"),
        (BASELINE.replace('"module": "b"', '"module": b'), "not JSON at line "),
        ("{}", "no schema is named, this version reads 'qtrace-baseline/1'"),
        (REPORT, "schema is 'qtrace-report/1', this version reads 'qtrace-baseline/1'"),
        (
            changed(BASELINE, lambda plain: plain.update(schema="qtrace-baseline/2")),
            "written by a newer qtrace under the schema qtrace-baseline/2; this is qtrace",
        ),
        (changed(BASELINE, lambda plain: plain.update(factr=2)), "unknown key 'factr'; did you mean factor?"),
        (
            changed(BASELINE, lambda plain: row_of(plain).update(pier=1)),
            "rows[1]: unknown key 'pier'; did you mean peir?",
        ),
        (changed(BASELINE, lambda plain: row_of(plain).update(module="a")), "rows[1]: a second line for a; keep one"),
        (changed(BASELINE, lambda plain: row_of(plain).update(peir="x")), "rows[1].peir: expected float, found str"),
        (changed(BASELINE, lambda plain: plain.update(factor=0.5)), "the baseline's factor is 0.5; expected"),
        (changed(BASELINE, lambda plain: plain.pop("environment")), "the key 'environment' is missing"),
    ],
)
def test_a_damaged_baseline_is_one_sentence_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(SourceError) as caught:
        load_baseline(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_baseline_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="it is not UTF-8 text"):
        load_baseline(path)
    with pytest.raises(SourceError, match="Is a directory"):
        load_baseline(tmp_path)
