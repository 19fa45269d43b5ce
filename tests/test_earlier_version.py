"""What an earlier version stored is read by this one: reports, and traces on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.report.records import Outcome, loads

STORED = Path(__file__).parent / "data" / "version-0.1.0"


def qtrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qtrace", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=STORED)


def test_a_stored_report_is_read() -> None:
    report = loads((STORED / "report.json").read_text(encoding="utf-8"))
    assert report.outcome is Outcome.FAULT
    assert [(finding.module, finding.kind) for finding in report.findings] == [("layers.1.0", "introduces")]
    assert next(row for row in report.rows if row.module == "").output == "logits"


@pytest.mark.parametrize("form", ["html", "md", "csv", "xml", "json", "sarif"])
def test_a_stored_report_is_shown_in_every_format(form: str, tmp_path: Path) -> None:
    made = tmp_path / f"report.{form}"
    done = qtrace("report", "report.json", "--to", str(made))
    assert (done.returncode, done.stderr) == (0, "")
    assert "layers.1.0" in made.read_text(encoding="utf-8")


def test_a_stored_report_is_judged(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_peir: 1e-3\n", encoding="utf-8")
    assert qtrace("check", "report.json", "--policy", str(policy)).returncode == 3
    policy.write_text("max_peir: 0.9\nfail_on: []\n", encoding="utf-8")
    assert qtrace("check", "report.json", "--policy", str(policy)).returncode == 0


def test_stored_traces_are_compared_with_the_numbers_of_then(tmp_path: Path) -> None:
    made = tmp_path / "diff.json"
    done = qtrace("diff", "reference.trace", "candidate.trace", "--report", str(made))
    assert done.returncode == 0, done.stderr
    then, now = (json.loads(path.read_text(encoding="utf-8")) for path in (STORED / "report.json", made))
    assert [finding["module"] for finding in now["findings"]] == ["layers.1.0"]
    numbers = [
        {(row["module"], row["call"], row["output"]): row["peir"] for row in report["rows"]} for report in (then, now)
    ]
    assert numbers[0].keys() == numbers[1].keys()
    assert list(numbers[1].values()) == pytest.approx(list(numbers[0].values()), rel=1e-9)


def test_a_stored_trace_is_listed() -> None:
    done = qtrace("show", "reference.trace")
    assert done.returncode == 0, done.stderr
    assert "layers.1.0" in done.stdout
