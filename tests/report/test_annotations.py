"""Annotations for GitHub, taken apart again as the runner does it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.report.annotations import MOST, TITLE_LENGTH, workflow_commands
from qtrace.report.records import GateVerdict, ReportData, Violation
from qtrace.report.text import visible
from tests.helpers.golden_reports import REPORTS, mask_bug, two
from tests.report.test_formats import HOSTILE, gate, named

Command = tuple[str, dict[str, str], str]


def commands(report: ReportData, verdict: GateVerdict | None = None) -> list[Command]:
    """Return the commands as the runner reads stdout: line by line, a kind, properties, a message."""
    text = workflow_commands(report, verdict)
    assert text.endswith("\n")
    return [_command(line) for line in text.removesuffix("\n").split("\n")]


def _command(line: str) -> Command:
    assert line.startswith("::")
    head, separator, data = line[2:].partition("::")
    assert separator
    kind, _, properties = head.partition(" ")
    pairs = [pair.split("=", 1) for pair in properties.split(",")]
    return kind, {name: _unescaped(value, "%3A:", "%2C,") for name, value in pairs}, _unescaped(data)


def _unescaped(text: str, *more: str) -> str:
    for escape in ("%0D\r", "%0A\n", *more, "%25%"):
        text = text.replace(escape[:3], escape[3:])
    return text


def test_a_finding_is_one_error_however_many_violations_it_explains() -> None:
    found = commands(mask_bug(), gate())
    assert [kind for kind, _, _ in found] == ["error"] * 4 + ["notice"]
    assert found[0][1] == {"title": "qtrace: model.visual.merger: missing"}
    assert found[1][1] == {"title": "qtrace: model.language_model passes a wrong attention_mask"}
    assert "Explains 4 violations" in found[1][2]
    assert found[-1][2] == "The gate failed: 7 violations, 40 rows judged against policy.yaml."


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("clean", ["notice"]),
        ("drift", ["warning"]),
        ("mask_bug", ["error", "notice"]),
        ("blameless", ["error", "notice"]),
        ("inconclusive", ["error", "notice"]),
    ],
)
def test_without_a_gate_the_outcome_is_told(name: str, kinds: list[str]) -> None:
    assert [kind for kind, _, _ in commands(REPORTS[name]())] == kinds


def test_a_passed_gate_is_a_notice_also_where_the_run_found_a_fault() -> None:
    assert commands(REPORTS["clean"](), gate(passed=True)) == [
        ("notice", {"title": "qtrace"}, "The gate passed: 40 rows judged against policy.yaml.")
    ]
    assert [kind for kind, _, _ in commands(mask_bug(), gate(passed=True))] == ["warning"]
    assert [kind for kind, _, _ in commands(mask_bug(), GateVerdict(passed=False))] == ["error", "notice"]


def test_the_worst_come_first_and_what_is_left_out_is_counted() -> None:
    violations = tuple(
        Violation(module=f"layers.{n}", column="peir", rule="max_peir", reason="r", severity=100.0 - n)
        for n in range(25)
    )
    found = commands(REPORTS["clean"](), GateVerdict(passed=False, violations=violations))
    errors = [properties["title"] for kind, properties, _ in found if kind == "error"]
    assert errors == [f"qtrace: layers.{n}: PEIR" for n in range(10)]
    assert len(errors) == MOST
    assert next(text for kind, _, text in found if kind == "notice").startswith("15 more problems of this run")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository whose folder `src` is the current one."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")
    return tmp_path


def test_a_file_of_the_repository_is_named_from_its_root(repository: Path) -> None:
    (repository / "src" / "port.py").touch()
    _, first, _ = commands(two())[0]
    assert first == {"file": "src/port.py", "line": "88", "title": "qtrace: model.layers.0.mlp introduces an error"}
    _, second, _ = commands(two())[1]
    assert second == {"title": "qtrace: model.layers.2.self_attn.o_proj introduces an error"}


def test_an_absolute_path_below_the_current_folder_is_named_from_the_root_too(repository: Path) -> None:
    (repository / "src" / "port.py").touch()
    site = {"file": str(repository / "src" / "port.py"), "line": 3}
    finding = dataclasses.replace(two().findings[0], source={"reference": None, "candidate": site})
    _, properties, _ = commands(dataclasses.replace(two(), findings=(finding,)))[0]
    assert (properties["file"], properties["line"]) == ("src/port.py", "3")


@pytest.mark.parametrize("file", ["/etc/passwd", "../above.py", "gone.py", "", "\x00", "x" * 5000, "."])
def test_a_file_outside_of_the_current_folder_is_not_named(repository: Path, file: str) -> None:
    (repository / "above.py").touch()
    finding = dataclasses.replace(two().findings[0], source={"candidate": {"file": file, "line": 3}})
    _, properties, _ = commands(dataclasses.replace(two(), findings=(finding,)))[0]
    assert set(properties) == {"title"}


@pytest.mark.parametrize(
    "source", [None, {}, {"candidate": None}, {"candidate": "port.py"}, {"candidate": {"line": 1}}]
)
def test_a_source_without_a_file_is_no_error(source: dict[str, object] | None) -> None:
    finding = dataclasses.replace(two().findings[0], source=source)
    assert commands(dataclasses.replace(two(), findings=(finding,)))[0][0] == "error"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_place_whatever_it_holds(name: str, repository: Path) -> None:
    report, verdict = named(name)
    found = commands(report, verdict)
    assert [kind for kind, _, _ in found] == ["error", "error", "notice"]
    assert all(set(properties) == {"title"} for _, properties, _ in found)
    assert all(len(properties["title"]) <= TITLE_LENGTH for _, properties, _ in found)
    assert found[0][1]["title"].startswith(f"qtrace: {visible(name) or '<root>'}"[:254])
    assert visible(name) in found[0][2]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_one_command_a_line(name: str) -> None:
    found = commands(*named(name))
    assert [kind for kind, _, _ in found] == ["error", "error", "notice"]
