"""`qtrace run` as a user meets it: exit codes, what goes to stdout and to stderr, and wrong input."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from qtrace.cli import main
from qtrace.report.records import loads
from qtrace.report.trace_listing import HEADINGS
from tests.report.test_table import statistics_of

MODELS = """
import os, signal
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, wrong=False):
        super().__init__()
        self.up, self.down, self.wrong = nn.Linear(8, 16), nn.Linear(16, 8), wrong
    def forward(self, x):
        hidden = self.up(x)
        if self.wrong == "raises":
            raise ValueError("too bad")
        if self.wrong == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        if self.wrong == "off":
            hidden = hidden + 0.5
        return x + self.down(torch.relu(hidden))

class Net(nn.Module):
    def __init__(self, wrong=False):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Block(wrong if n == 1 else False) for n in range(2))
        self.head = nn.Linear(8, 20)
    def forward(self, ids):
        if "MODELS_PRINT" in os.environ:
            print("a model that prints")
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x)}

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.something, self.net = nn.Linear(1, 20), nn.Linear(1, 20)
    def forward(self, ids):
        return {"logits": self.something(ids.float()[..., None]) + self.net(ids.float()[..., None])}

def good(): return Net().eval()
def off(): return Net("off").eval()
def training(): return Net().train()
def raising(): return Net("raises").eval()
def interrupted(): return Net("interrupted").eval()
def other(): return Other().eval()
def no_module(): return 5
def ids(): return {"ids": torch.arange(12).reshape(1, 12)}
def odd_inputs(): return {"idz": torch.arange(12)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def options(candidate: str = "off", inputs: str = "ids", reference: str = "good") -> list[str]:
    named = {"--reference": reference, "--candidate": candidate, "--inputs": inputs}
    return [word for option, name in named.items() for word in (option, f"models.py:{name}")]


def process(*arguments: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "qtrace", *arguments],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )


class Ended:
    """A command run in this process: its exit code, and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        self.code = exit_.value.code
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    @property
    def said(self) -> str:
        """Return stdout without its line breaks."""
        return " ".join(self.out.split())


# As processes: the main cases.


def test_a_fault_is_shown_and_is_no_failure(folder: Path) -> None:
    ended = process("run", *options(), "--report", "report.json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    headings = [line.split() for line in lines if line.startswith("module ")]
    assert headings[0][:2] == ["module", "verdict"]
    assert headings[1] == ["module", "mean", "min", "max", "stddev", "PEIR", "↓"]
    assert any(line.startswith("layers.1.down") for line in lines)
    assert "The candidate does not compute what the reference computes." in map(str.strip, lines)
    assert lines[-1] == "outcome: fault. 1 finding: layers.1 introduces an error."
    assert "compared 8 of 8 calls (100 %)" in lines
    assert max(map(len, (line.rstrip() for line in lines))) <= 80
    report = loads((folder / "report.json").read_text())
    assert report.outcome.value == "fault"
    assert report.reference.source == "models.py:good"


def test_stdout_is_only_json_where_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS_PRINT", "1")
    ended = process("run", *options("good"), "--report", "-")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["outcome"] == "clean"
    assert "outcome: clean." in ended.stderr
    assert "a model that prints" in ended.stderr


def test_a_forward_that_raises_leaves_a_partial_report(folder: Path) -> None:
    ended = process("run", *options("raising"), "--report", "report.json")
    assert ended.returncode == 1
    assert "layers.0" in ended.stdout
    assert "outcome: fault. The run ended early" in ended.stdout
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the candidate raised ValueError in layers.1 (Block)")
    assert "too bad" in last
    assert "Traceback" not in ended.stderr
    report = loads((folder / "report.json").read_text())
    assert report.error is not None
    assert "too bad" in report.error
    assert "layers.0" in {row.module for row in report.rows}


def test_an_interrupted_run_leaves_a_partial_report(folder: Path) -> None:
    ended = process("run", *options("interrupted"), "--report", "report.json")
    assert ended.returncode == 130
    assert "layers.0" in ended.stdout
    assert ended.stderr.strip().splitlines()[-1].startswith("error: interrupted")
    assert loads((folder / "report.json").read_text()).error == "interrupted"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["run", *options("good")], ["run", "--help"], ["--version"]])
def test_a_full_disk_under_stdout_is_one_sentence(folder: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = process(*arguments, stdout=full)
    assert ended.returncode == 1
    assert ended.stderr == "error: stdout: No space left on device; the results could not be printed\n"


def test_a_terminal_without_blocks_and_arrows_gets_what_stands_in_for_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = process("run", *options(), "--order", "execution")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.isascii()
    assert "- Diagnosis ---" in ended.stdout
    assert re.search(r"PEIR v\|bar", ended.stdout)
    assert "?" not in ended.stdout


def test_a_reader_who_leaves_ends_the_printing_quietly(folder: Path) -> None:
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "qtrace",
        "run",
        *options(),
        "--fail-on",
        "fault",
        "--show-trace",
        "both",
    ]
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(root)}, stdout=write, stderr=subprocess.PIPE, text=True
    ) as ended:
        os.close(write)
        _, err = ended.communicate(timeout=120)
    assert err == ""
    assert ended.returncode == 3


def test_progress_goes_to_a_terminal_on_stderr_and_nowhere_else(folder: Path) -> None:
    root = Path(__file__).parents[2]
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(root), "TERM": "xterm"}
    command = [sys.executable, "-m", "qtrace", "run", *options("good")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=slave, text=True) as ended:
        os.close(slave)
        told = b""
        while True:
            try:
                block = os.read(master, 65536)
            except OSError:  # Linux says so when the last writer has gone.
                break
            if not block:
                break
            told += block
        out, _ = ended.communicate(timeout=120)
    os.close(master)
    assert ended.returncode == 0
    assert b"comparing" in told
    assert "comparing" not in out
    assert "outcome: clean" in out


# In this process: everything else.


def test_the_gate_on_an_outcome(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "run", *options(), "--fail-on", "fault").code == 3
    assert Ended(capsys, "run", *options(), "--fail-on", "drift").code == 0
    assert Ended(capsys, "run", *options("good"), "--fail-on", "fault", "--fail-on", "drift").code == 0


def test_too_little_in_common_is_inconclusive_whatever_the_gate(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Ended(capsys, "run", *options("other"), "--fail-on", "fault")
    assert ended.code == 4
    assert "outcome: inconclusive. Too little was compared to say: 0 of 8 calls (0 %)." in ended.said
    assert "`qtrace modules`" in ended.said


def test_top_sort_and_order_shape_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "run", *options(), "--top", "1", "--all")
    assert "… and 8 more rows; --top 0 shows all" in ended.out
    assert "folded away" not in ended.out
    ended = Ended(capsys, "run", *options(), "--order", "execution")
    table = statistics_of(ended.out)
    names = ["embed", "layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down", "head", "<root>"]
    places = [table.index(f"\n{name} ") for name in names]
    assert places == sorted(places)
    ended = Ended(capsys, "run", *options(), "--sort", "sqnr")
    assert "SQNR dB ↑" in ended.out


def test_the_command_that_is_proposed_is_the_one_that_was_typed_and_more(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Ended(capsys, "run", *options(), "--seed", "5", "--top", "3", "--token", "secret")
    proposal = re.search(r"^ *(qtrace ops (?:.*\\\s*\n)*.*)$", ended.out, re.MULTILINE)
    assert proposal is not None
    words = shlex.split(proposal[1].replace("\\", ""))
    assert words == ["qtrace", "ops", *options(), "--seed", "5", "--module", "layers.1"]
    again = Ended(capsys, *words[1:])
    assert again.code == 0
    assert "layers.1" in again.out


def test_quiet_says_only_the_outcome(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "run", *options(), "--quiet")
    assert ended.out.startswith("outcome: fault. ")
    assert "Mean |diff|" not in ended.out
    assert ended.err == ""


def test_warnings_go_to_stderr_unless_quiet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "run", *options("training"))
    assert re.match(r"warning: the candidate has \d+ modules in training mode", ended.err)
    assert "training mode" not in ended.out
    assert Ended(capsys, "run", *options("training"), "--quiet").err == ""


@pytest.mark.parametrize(("arguments", "variable"), [(["--no-color"], ""), ([], "1")])
def test_colours_are_left_out_on_request(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: str,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colour = re.compile(r"\x1b\[(?:\d;)*3\dm")
    assert colour.search(Ended(capsys, "run", *options()).out)
    monkeypatch.setenv("NO_COLOR", variable)
    assert not colour.search(Ended(capsys, "run", *options(), *arguments).out)


def test_only_and_skip_leave_the_rest_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ended(capsys, "run", *options(), "--only", "layers.**", "--skip", "**.up", "--report", "report.json")
    report = loads((folder / "report.json").read_text())
    assert {row.module for row in report.rows} == {
        "layers.0.down",
        "layers.0",
        "layers.1.down",
        "layers.1",
        "",
    }


def test_a_tolerance_makes_a_difference_acceptable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "run", *options(), "--tolerance", "0.9")
    assert "outcome: clean." in ended.out
    assert "within the tolerance 9.00e-01" in ended.said


def test_show_trace_lists_the_calls_of_one_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "run", *options(), "--show-trace", "candidate")
    assert "candidate, call by call" in ended.out
    assert "reference, call by call" not in ended.out
    listing = ended.out.split("call by call")[1].split("Diagnosis")[0]
    assert "→ ids" in listing
    assert "int64 [1,12]" in listing
    assert "layers.1.down  Linear" in listing
    assert "← logits" in listing


def test_inspect_shows_all_values_and_their_difference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "run", *options(), "--inspect", "layers.1.down")
    for side in ("reference", "candidate", "difference"):
        listing = ended.out.split(f"{side}, call by call")[1].split("call by call")[0].split("Diagnosis")[0]
        assert "layers.1.down" in listing
        assert "layers.0" not in listing
        values = re.findall(r"-?\d+\.\d*(?:e-\d+)?", listing.split("←")[-1])
        assert len(values) == len(HEADINGS) + 12 * 8


def test_plot_draws_the_final_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotext")
    ended = Ended(capsys, "run", *options(), "--plot")
    assert "final output: candidate (up) over reference (right)" in ended.said
    assert ended.out.count("•") > 10
    assert "candidate (up)" not in Ended(capsys, "run", *options()).out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["--report", "x.txt"],
            2,
            "report x.txt: no format has the ending .txt; known: .json, .html, .md,",
        ),
        (["--report", "no/x.json"], 1, "report no/x.json: the folder no does not exist; create it first"),
        (["--sort", "pier"], 2, "--sort 'pier' is no column of the table; did you mean peir"),
        (["--only", "layer.*"], 2, "--only 'layer.*' matches no module; near: "),
        (["--inspect", "hed"], 2, "--inspect 'hed' matches no module; near: head"),
        (["--tolerance", "small"], 2, "--tolerance"),
        (["--no-such"], 2, "No such option: --no-such"),
        (["--top", "many"], 2, "Invalid value for '--top'"),
        (["--show-trace", "left"], 2, "'--show-trace': 'left' is not one of 'reference', 'candidate', 'both'"),
        (["--fail-on", "drft"], 2, "'--fail-on': 'drft' is not one of 'fault', 'drift'"),
        (["--report", "/proc/x.json"], 1, "report /proc/x.json: No such file or directory; choose another place"),
        (["nowhere.yaml"], 2, "no such config file: nowhere.yaml"),
        (["--wrap", "tico"], 2, "exclude each other"),
    ],
)
def test_wrong_options_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    ended = Ended(capsys, "run", *options(), *arguments)
    assert ended.code == code
    assert words in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.out == ""


@pytest.mark.parametrize(
    ("pair", "code", "words"),
    [
        (options("missing"), 1, "missing"),
        (options("no_module"), 1, "no_module"),
        (options(inputs="odd_inputs"), 2, "idz"),
        (
            ["--reference", "gone.py:model", "--candidate", "models.py:good", "--inputs", "models.py:ids"],
            1,
            "gone.py",
        ),
        ([], 2, "there is no reference"),
    ],
)
def test_wrong_sources_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], pair: list[str], code: int, words: str
) -> None:
    ended = Ended(capsys, "run", *pair)
    assert ended.code == code
    assert words in ended.err
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err


def test_a_report_that_cannot_be_written_after_the_run_still_shows_the_results(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtrace.report.formats.Path.write_text", _no_space)
    ended = Ended(capsys, "run", *options(), "--report", "report.json")
    assert ended.code == 1
    assert "outcome: fault." in ended.out
    assert "error: report report.json: No space left on device; nothing was written" in ended.err


def _no_space(*arguments: object, **fields: object) -> int:
    raise OSError(28, "No space left on device")
