"""docs/ci.md: its jobs are YAML that each host reads, and their commands do what it says of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from junitparser import JUnitXml

from qtrace.errors import ExitCode
from qtrace.report.formats import ENDINGS, NAMES
from tests.cli.test_run import MODELS

TEXT = (Path(__file__).parent.parent / "docs" / "ci.md").read_text(encoding="utf-8")
CONFIG, GITHUB, GITLAB, PRE_COMMIT = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PAIR = """
def float_model():
    torch.manual_seed(0)
    return Net().eval()

def quantized(reference):
    reference.layers[1].wrong = {wrong!r}
    return reference

def batch():
    return ids()
"""


def repository(folder: Path, *, wrong: bool) -> None:
    """Write the config of the docs, and its pair."""
    (folder / "models.py").write_text(MODELS + PAIR.format(wrong="off" if wrong else False))
    (folder / "parity.yaml").write_text(CONFIG)


def sh(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a job's commands as its host does, with what this environment has in place of what `pip` would install."""
    root = Path(__file__).parent.parent
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(root), "GITHUB_STEP_SUMMARY": "summary"}
    lines = [line for line in command.splitlines() if not line.startswith("pip install")]
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("wrong", "code"), [(False, ExitCode.DONE), (True, ExitCode.GATE_FAILED)])
def test_the_github_job_checks_and_tells(tmp_path: Path, wrong: bool, code: ExitCode) -> None:
    repository(tmp_path, wrong=wrong)
    job = yaml.safe_load(GITHUB)["jobs"]["parity"]
    steps = {step["name"]: step["run"] for step in job["steps"] if "name" in step}
    ended = sh(steps["check"], tmp_path)
    assert ended.returncode == code, ended.stderr
    told = sh(steps["tell"], tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    kinds = [line.split("::")[1].split(" ")[0] for line in told.stdout.splitlines()]
    assert kinds == (["notice"] if not wrong else ["error", "notice"])
    mark = "✅" if not wrong else "❌"
    assert (tmp_path / "summary").read_text(encoding="utf-8").startswith(f"### {mark} qtrace: The gate ")
    assert (tmp_path / "parity.html").stat().st_size > 0
    (upload,) = [step["with"]["sarif_file"] for step in job["steps"] if "upload-sarif" in step.get("uses", "")]
    results = json.loads((tmp_path / upload).read_text())["runs"][0]["results"]
    assert bool(results) is wrong


def test_the_gitlab_job_leaves_its_artifacts(tmp_path: Path) -> None:
    repository(tmp_path, wrong=True)
    job = yaml.safe_load(GITLAB)["parity"]
    assert sh("\n".join(job["script"]), tmp_path).returncode == ExitCode.GATE_FAILED
    artifacts = job["artifacts"]
    for path in artifacts["paths"]:
        assert (tmp_path / path).stat().st_size > 0
    tests = JUnitXml.fromfile(str(tmp_path / artifacts["reports"]["junit"]))
    assert tests.tests > tests.failures > 1


def test_the_hook_checks(tmp_path: Path) -> None:
    repository(tmp_path, wrong=False)
    (repositories,) = yaml.safe_load(PRE_COMMIT)["repos"]
    (hook,) = repositories["hooks"]
    ended = sh(hook["entry"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert re.search(hook["files"], "models.py")
    assert not re.search(hook["files"], "docs/models.py.md")


def test_the_table_names_every_format() -> None:
    table = TEXT[TEXT.index("## Formats") :]
    rows = re.findall(r"^\| (.*?)\| `(\w+)` \|", table, re.MULTILINE)
    endings: dict[str, Any] = {ending: name for cell, name in rows for ending in re.findall(r"`(\S+)`", cell)}
    assert {name for _, name in rows} == set(NAMES)
    assert {ending: NAMES[name] for ending, name in endings.items()} == dict(ENDINGS)


def test_the_exit_codes_are_those_of_the_command() -> None:
    told = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", TEXT, re.MULTILINE) for code in cell.split(",")}
    assert told == set(ExitCode) - {ExitCode.INTERRUPTED}
