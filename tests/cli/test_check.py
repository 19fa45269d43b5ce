"""`qtrace check` as a user and a CI job meet it: exit codes, what is said where, wrong input, no torch for a report."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import qtrace
from qtrace.report.records import dumps
from tests.cli.test_app import loaded_after
from tests.cli.test_run import MODELS, Ended, options, process

CONFIGS = Path(__file__).parents[2] / "configs"
WORSE = """
def worse():
    import copy
    made = copy.deepcopy(good())
    with torch.no_grad():
        made.layers[1].down.weight[0] *= 3
    return made
def seeded():
    torch.manual_seed(7)
    return good()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODELS + WORSE)
    (tmp_path / "policy.yaml").write_text("max_peir: 1e-4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@functools.cache
def traced(candidate: str) -> str:
    """Return the report of a pair as JSON."""
    names: dict[str, Any] = {}
    exec(MODELS, names)
    torch.manual_seed(0)
    reference = names["good"]()
    torch.manual_seed(0)
    return dumps(qtrace.trace(reference, names[candidate](), names["ids"]()))


@pytest.fixture
def stored(folder: Path) -> Path:
    """Return a folder with the reports of a pair that agrees and of one that does not."""
    for name in ("good", "off"):
        (folder / f"{name}.json").write_text(traced(name))
    return folder


def change(path: Path, **fields: Any) -> None:
    """Change keys of a stored report; `row` changes those of its row of layers.1.down."""
    plain = json.loads(path.read_text())
    for row in plain["rows"]:
        if row["module"] == "layers.1.down":
            row.update(fields.pop("row", {}))
    plain.update(fields)
    path.write_text(json.dumps(plain))


# A run.


def test_a_run_that_keeps_to_its_limits_passes(folder: Path) -> None:
    ended = process("check", *options("good"), "--policy", "policy.yaml")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == "gate: passed. 9 rows judged against policy.yaml."
    assert "compared 8 of 8 calls (100 %)" in ended.stdout


def test_a_run_that_does_not_fails_and_says_which_by_how_much_and_why(folder: Path) -> None:
    ended = process("check", *options("off"), "--policy", "policy.yaml", "--report", "report.json")
    assert ended.returncode == 3
    lines = ended.stdout.splitlines()
    said = " ".join(ended.stdout.split())
    assert any(line.split()[:2] == ["layers.1.down", "PEIR"] and "> 1.00e-04" in line for line in lines)
    assert "max_peir: above the limit, by a factor of" in said
    assert "1. layers.1 introduces an error" in said
    assert "Behind it: layers.1 introduces an error." in said
    assert json.loads((folder / "report.json").read_text())["gate"]["passed"] is False


def test_a_policy_in_the_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = "reference: models.py:good\ncandidate: {source: 'models.py:off'}\ninputs: models.py:ids\n"
    (folder / "loose.yaml").write_text(f"{pair}policy: {{max_peir: 0.9}}\n")
    ended = Ended(capsys, "check", "loose.yaml")
    assert ended.code == 0
    assert "judged against the config's policy." in ended.said
    assert "note: it passes although the outcome is fault" in ended.said
    assert Ended(capsys, "check", "loose.yaml", "--policy", "policy.yaml").code == 3
    (folder / "bare.yaml").write_text(pair)
    ended = Ended(capsys, "check", "bare.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: there is nothing to check against; give --policy FILE or --baseline FILE")


def test_a_config_in_another_folder_finds_what_lies_beside_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pair.yaml").write_text("reference: models.py:good\ncandidate: models.py:good\ninputs: models.py:ids\n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert Ended(capsys, "check", "../pair.yaml", "--policy", "../policy.yaml").code == 0


def test_nothing_in_common_is_inconclusive_whatever_the_limits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "policy.yaml").write_text("max_peir: 1e-4\nfail_on: [fault, inconclusive]\n")
    ended = Ended(capsys, "check", *options("other"), "--policy", "policy.yaml", "--report", "other.json")
    assert ended.code == 4
    assert "gate: inconclusive. Too little was compared to say" in ended.said
    assert Ended(capsys, "check", "other.json", "--policy", "policy.yaml").code == 4


def test_a_limit_on_what_is_introduced_has_it_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "policy.yaml").write_text("max_peir_local: 1e-4\n")
    assert Ended(capsys, "check", *options("good"), "--policy", "policy.yaml").code == 0
    ended = Ended(capsys, "check", *options("good"), "--policy", "policy.yaml", "--no-local")
    assert (ended.code, ended.out) == (2, "")
    assert "--no-local does not measure it" in ended.err


def test_a_run_that_raises_is_an_error_and_shows_what_there_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Ended(capsys, "check", *options("raising"), "--policy", "policy.yaml", "--report", "raised.json")
    assert ended.code == 1
    assert "error: the candidate raised ValueError" in ended.err
    assert "the run ended early" in ended.said
    assert Ended(capsys, "check", "raised.json", "--policy", "policy.yaml").code == 3


def test_a_pattern_is_checked_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtrace.tracing.api.trace", lambda *models, **more: pytest.fail("the models ran"))
    (folder / "policy.yaml").write_text("max_peir: 1\noverrides: {layer.*: 1e-3}\n")
    ended = Ended(capsys, "check", *options("good"), "--policy", "policy.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: the policy's overrides pattern 'layer.*' matches no module; near: layers")


# A stored report.


def test_a_stored_report_is_judged_as_the_run_was(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "check", "good.json", "--policy", "policy.yaml").code == 0
    (stored / "off").write_text((stored / "off.json").read_text())
    for name in ("off.json", "off"):
        again = Ended(capsys, "check", name, "--policy", "policy.yaml")
        assert again.code == 3
        assert "Behind it: layers.1 introduces an error." in again.said


def test_a_stored_report_is_judged_without_torch(stored: Path) -> None:
    assert loaded_after("check", "--help") == []
    assert loaded_after("check", "good.json", "--policy", "policy.yaml") == ["yaml"]
    update = ("check", "good.json", "--baseline", "b.json", "--update-baseline")
    assert loaded_after(*update) == []
    assert loaded_after(*update[:4]) == []


@pytest.mark.parametrize("value", ["NaN", "null"])
def test_a_nan_in_one_row_fails(stored: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    change(stored / "good.json", row={"peir": "HERE", "max": 1.0})
    text = (stored / "good.json").read_text().replace('"HERE"', value)
    (stored / "good.json").write_text(text)
    ended = Ended(capsys, "check", "good.json", "--policy", "policy.yaml")
    assert ended.code == 3
    assert "gate: failed. 1 violation" in ended.said
    assert "layers.1.down" in ended.said


def test_a_damaged_report_is_an_error_with_file_and_place(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (stored / "good.json").read_text()
    change(stored / "good.json", row={"peir": "small"})
    (stored / "torn.json").write_text(whole[: len(whole) // 2])
    for name, words in (("good.json", "good.json: rows["), ("torn.json", "torn.json: not JSON at line ")):
        ended = Ended(capsys, "check", name, "--policy", "policy.yaml")
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith(f"error: {words}")
        assert ended.err.count("\n") == 1


def test_a_report_of_a_newer_schema_is_refused_with_both_versions(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(stored / "good.json", schema="qtrace-report/2", qtrace="9.9.0")
    ended = Ended(capsys, "check", "good.json", "--policy", "policy.yaml")
    assert ended.code == 1
    assert "qtrace 9.9.0 under the schema qtrace-report/2" in ended.err
    assert f"this is qtrace {qtrace.__version__}, which reads qtrace-report/1" in ended.err


# A baseline.


def test_a_baseline_from_its_first_run_to_its_loosening(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--reference", "models.py:seeded", "--inputs", "models.py:ids", "--baseline", "b.json"]
    same, worse = ([*pair, "--candidate", f"models.py:{name}"] for name in ("seeded", "worse_seeded"))
    (folder / "models.py").write_text(
        MODELS + WORSE + "def worse_seeded():\n    torch.manual_seed(7)\n    return worse()\n"
    )
    missing = Ended(capsys, "check", *same)
    assert (missing.code, missing.err) == (2, "error: no such baseline: b.json; --update-baseline writes it\n")
    first = Ended(capsys, "check", *same, "--update-baseline")
    assert first.code == 0
    assert "baseline b.json written: 9 rows" in first.said
    written = (folder / "b.json").read_text()
    assert Ended(capsys, "check", *same).code == 0
    again = Ended(capsys, "check", *same, "--update-baseline")
    assert (again.code, (folder / "b.json").read_text()) == (0, written)
    regressed = Ended(capsys, "check", *worse)
    assert regressed.code == 3
    assert "baseline: was 0 in the baseline" in regressed.said
    refused = Ended(capsys, "check", *worse, "--update-baseline")
    assert (refused.code, (folder / "b.json").read_text()) == (3, written)
    assert "LOOSER: b.json would be looser in 4 places:" in refused.said
    assert "was not written: it would be looser than before; --allow-loosen takes that in" in refused.said
    loosened = Ended(capsys, "check", *worse, "--update-baseline", "--allow-loosen")
    assert loosened.code == 0
    assert "LOOSER: b.json is looser now in 4 places:" in loosened.said
    assert (folder / "b.json").read_text() != written
    assert Ended(capsys, "check", *worse).code == 0
    better = Ended(capsys, "check", *same)
    assert better.code == 0
    assert "improved enough to tighten the baseline: layers.1.down" in better.said
    tightened = Ended(capsys, "check", *same, "--update-baseline")
    assert "(4 tightened, 5 as before)" in tightened.said
    assert (folder / "b.json").read_text() == written


def test_another_environment_stands_before_any_regression(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "check", "good.json", "--baseline", "b.json", "--update-baseline").code == 0
    change(stored / "off.json", environment={"threads": 64})
    ended = Ended(capsys, "check", "off.json", "--baseline", "b.json")
    assert ended.code == 3
    assert "threads is 64, and was" in ended.said
    assert ended.out.index("Not as it was when the baseline was written") < ended.out.index("violation")


def test_a_baseline_is_not_written_where_the_run_fails_or_says_nothing(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update = ("--baseline", "b.json", "--update-baseline")
    failed = Ended(capsys, "check", "off.json", "--policy", "policy.yaml", *update)
    assert failed.code == 3
    assert "baseline b.json was not written: the run does not pass" in failed.said
    undecided = Ended(capsys, "check", *options("other"), *update)
    assert undecided.code == 4
    assert "baseline b.json was not written: too little was compared" in undecided.said
    assert not (stored / "b.json").exists()


def test_how_much_worse_a_row_may_get(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "check", "good.json", "--baseline", "b.json", "--update-baseline").code == 0
    against = ("check", "off.json", "--baseline", "b.json")
    assert Ended(capsys, *against, "--slack", "0.9").code == 0
    assert Ended(capsys, *against, "--factor", "100").code == 3
    refused = Ended(capsys, *against, "--slack", "0.9", "--update-baseline")
    assert refused.code == 3
    assert "the slack grows from 0 to 0.9" in refused.said
    assert Ended(capsys, *against, "--slack", "0.9", "--update-baseline", "--allow-loosen").code == 0
    assert json.loads((stored / "b.json").read_text())["slack"] == 0.9


def test_a_damaged_baseline_is_an_error_with_file_and_place(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stored / "b.json").write_text("{\n<<<<<<< ours\n")
    ended = Ended(capsys, "check", "good.json", "--baseline", "b.json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: b.json: not JSON at line 2, column 1")


# What goes where, and wrong input.


def test_stdout_is_only_json_where_it_is_asked_for(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "check", "off.json", "--policy", "policy.yaml", "--report", "-")
    assert ended.code == 3
    assert json.loads(ended.out)["gate"]["violations"]
    assert "gate: failed." in ended.err


def test_quiet_says_only_the_verdict(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "check", "off.json", "--policy", "policy.yaml", "--quiet")
    assert ended.out.startswith("gate: failed. ")
    assert "violation " not in ended.out


def test_top_cuts_the_violations(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = Ended(capsys, "check", "off.json", "--policy", "policy.yaml", "--top", "1")
    assert "more violations; --top 0 shows all" in cut.out
    assert "more violation" not in Ended(capsys, "check", "off.json", "--policy", "policy.yaml", "--top", "0").out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "there is nothing to check against; give --policy FILE or --baseline FILE"),
        (["--policy", "polcy.yaml"], 2, "no such policy file: polcy.yaml; did you mean policy.yaml"),
        (["--policy", "empty.yaml"], 2, "the policy sets no limit at all"),
        (["--policy", "typo.yaml"], 2, "typo.yaml:1: unknown key max_pier; did you mean max_peir"),
        (
            ["--policy", "near.yaml"],
            2,
            "the policy's overrides pattern 'layers.1.dwn' matches no module; near: layers.1.down",
        ),
        (["--update-baseline"], 2, "--update-baseline is about a baseline, and none is named; give --baseline FILE"),
        (["--policy", "policy.yaml", "--factor", "2"], 2, "--factor is about a baseline, and none is named"),
        (["--baseline", "b.json", "--allow-loosen"], 2, "--allow-loosen is about what is written, and nothing is"),
        (["--baseline", "b.json", "--factor", "0.5"], 2, "Invalid value for '--factor'"),
        (["--baseline", "no/b.json", "--update-baseline"], 1, "baseline no/b.json: the folder no does not exist"),
        (["--policy", "policy.yaml", "--seed", "3"], 2, "good.json is a stored report: it is not run again, so --seed"),
        (["--policy", "policy.yaml", "--report", "x.txt"], 2, "report x.txt: no format has the ending .txt"),
    ],
)
def test_wrong_options_are_one_sentence(
    stored: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    (stored / "empty.yaml").write_text("strict: true\n")
    (stored / "typo.yaml").write_text("max_pier: 1\n")
    (stored / "near.yaml").write_text("overrides: {layers.1.dwn: 1e-3}\n")
    ended = Ended(capsys, "check", "good.json", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith(f"error: {words}")
    assert ended.err.count("\n") == 1


def test_a_missing_report_names_near_ones(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "check", "god.json", "--policy", "policy.yaml")
    assert (ended.code, ended.err) == (2, "error: no such report: god.json; did you mean good.json or off.json?\n")


# The pair that the project began with.


@pytest.mark.tico
def test_the_correct_pair_passes_and_the_bug_is_named() -> None:
    pytest.importorskip("tico")
    policy = ("--policy", str(CONFIGS / "qwen3_vl_policy.yaml"))
    correct = process("check", str(CONFIGS / "qwen3_vl.yaml"), *policy)
    assert correct.returncode == 0, correct.stdout
    assert "absorbed, not counted: " in correct.stdout
    bug = process("check", str(CONFIGS / "qwen3_vl_mask_bug.yaml"), *policy)
    assert bug.returncode == 3, bug.stderr
    said = " ".join(bug.stdout.split())
    assert "Behind it: model.language_model passes a wrong attention_mask." in said
