"""`qtrace report` as a user meets it: a stored report on the terminal and in every format, and wrong input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qtrace.cli.report import Name
from qtrace.report.formats import ENDINGS, NAMES
from qtrace.report.json import json as as_json
from qtrace.report.records import loads
from tests.cli.test_app import loaded_after
from tests.cli.test_run import Ended, process
from tests.helpers.golden_reports import clean, mask_bug
from tests.report.test_formats import gate


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.json").write_text(as_json(mask_bug()))
    (tmp_path / "checked.json").write_text(as_json(mask_bug(), gate()))
    (tmp_path / "clean.json").write_text(as_json(clean()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_a_stored_report_reads_as_the_run_did(folder: Path) -> None:
    ended = process("report", "run.json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "1. model.language_model passes a wrong attention_mask" in ended.stdout
    last = "outcome: fault. 1 finding: model.language_model passes a wrong attention_mask."
    assert ended.stdout.splitlines()[-1] == last
    assert max(len(line.rstrip()) for line in ended.stdout.splitlines()) <= 80
    assert "\x1b" not in ended.stdout


def test_a_name_does_not_steer_the_terminal(folder: Path) -> None:
    text = (folder / "run.json").read_text().replace("model.language_model", "model.\\u001b[31mlanguage")
    (folder / "run.json").write_text(text)
    ended = process("report", "run.json")
    assert ended.returncode == 0
    assert "model.\\x1b[31mlanguage passes" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_each_path_gets_the_format_of_its_ending(folder: Path) -> None:
    paths = [f"out{ending}" for ending in ENDINGS]
    ended = process("report", "checked.json", *(word for path in paths for word in ("--to", path)))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    for path, ending in zip(paths, ENDINGS, strict=True):
        assert (folder / path).read_text(encoding="utf-8") == ENDINGS[ending](mask_bug(), gate())


def test_a_report_comes_back_from_its_own_format(folder: Path) -> None:
    assert process("report", "checked.json", "--to", "again.json").returncode == 0
    assert (folder / "again.json").read_text() == (folder / "checked.json").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_each_format_can_be_printed(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    ended = Ended(capsys, "report", "checked.json", "--format", name)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == NAMES[name](mask_bug(), gate())


def test_the_formats_to_print_are_all_that_there_are() -> None:
    assert {name.value for name in Name} == set(NAMES)


def test_a_dash_is_json_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "report", "run.json", "--to", "-", "--to", "run.md")
    assert (ended.code, ended.err) == (0, "")
    assert loads(ended.out) == loads((folder / "run.json").read_text())
    assert (folder / "run.md").stat().st_size > 0


def test_what_the_gate_said_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "report", "checked.json")
    assert ended.code == 0
    assert "gate: failed" in ended.out
    assert "7 violations" in ended.said
    assert "gate:" not in Ended(capsys, "report", "run.json").out


def test_quiet_says_only_what_came_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "report", "clean.json", "--quiet").out.startswith("outcome: clean.")
    lines = Ended(capsys, "report", "checked.json", "--quiet").said
    assert lines.startswith("gate: failed")
    assert "outcome: fault." in lines


def test_top_sort_and_all_shape_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "report", "run.json", "--all", "--top", "0", "--sort", "module")
    assert "folded away" not in ended.out
    assert "…layers.0.self_attn.q_proj" in ended.out


def test_help_is_light() -> None:
    assert loaded_after("report", "--help") == []


@pytest.mark.parametrize("arguments", [[], ["--to", "out.html"], ["--format", "github"], ["--to", "out.sarif"]])
def test_no_torch_is_imported(folder: Path, arguments: list[str]) -> None:
    assert "torch" not in loaded_after("report", "checked.json", *arguments)


def test_a_terminal_without_unicode_still_gets_markdown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = process("report", "checked.json", "--format", "markdown")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.isascii()


# Wrong input: one sentence each.


def test_a_report_of_a_newer_schema_is_refused_with_both_versions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {**json.loads((folder / "run.json").read_text()), "schema": "qtrace-report/2"}
    (folder / "newer.json").write_text(json.dumps(plain))
    ended = Ended(capsys, "report", "newer.json")
    assert (ended.code, ended.out) == (1, "")
    for words in ("newer.json: ", "qtrace-report/2", "qtrace-report/1", "upgrade qtrace"):
        assert words in ended.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "qtrace-report/1",\n "rows": [', "bad.json: not JSON at line 2, column 11"),
        ("", "bad.json: not JSON at line 1, column 1"),
        ("[]", "bad.json: no schema is named"),
        ('{"schema": "other/3"}', "bad.json: schema is 'other/3', this version reads 'qtrace-report/1'"),
        ('{"schema": "qtrace-report/1"}', "bad.json: the key 'qtrace' is missing"),
        ("[" * 100_000, "bad.json: JSON that is nested too deeply"),
    ],
)
def test_a_damaged_report_says_where(folder: Path, capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    (folder / "bad.json").write_text(text)
    ended = Ended(capsys, "report", "bad.json", "--to", "out.html")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"error: {words}")
    assert ended.err.count("\n") == 1
    assert not (folder / "out.html").exists()


def test_a_damaged_verdict_says_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = json.loads((folder / "checked.json").read_text())
    plain["gate"]["violations"][3]["limit"] = "low"
    (folder / "bad.json").write_text(json.dumps(plain))
    ended = Ended(capsys, "report", "bad.json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "error: bad.json: gate: violations[3].limit: expected float, found str\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gone.json"], 2, "gone.json"),
        (["run.json", "--to", "out.txt"], 2, "report out.txt: no format has the ending .txt; known: .json, .html"),
        (["run.json", "--to", "no/out.md"], 1, "report no/out.md: the folder no does not exist; create it first"),
        (["run.json", "--to", "/proc/out.md"], 1, "report /proc/out.md: "),
        (["run.json", "--to", "-", "--format", "csv"], 2, "stdout takes one format"),
        (["run.json", "--to", "-", "--to", "-"], 2, "stdout takes one format"),
        (["run.json", "--format", "pdf"], 2, "'--format': 'pdf' is not one of 'json', 'html'"),
        (["run.json", "--sort", "pier"], 2, "--sort 'pier' is no column of the table; did you mean peir"),
        ([], 2, "Missing argument 'REPORT'"),
        (["."], 1, "Is a directory"),
    ],
)
def test_wrong_options_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    ended = Ended(capsys, "report", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["checked.json", "clean.json", "run.json"]


def test_what_is_no_text_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.json").write_bytes(b"\xff\xfe{}")
    ended = Ended(capsys, "report", "bad.json")
    assert ended.code == 1
    assert "UTF-8" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_report_that_may_not_be_read_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.json").chmod(0)
    assert Ended(capsys, "report", "run.json").code == 1
