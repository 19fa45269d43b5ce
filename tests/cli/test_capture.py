"""`qtrace capture`, `diff` and `show` as a user meets them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from qtrace.cli.capture import size
from qtrace.errors import UsageError
from qtrace.report.records import loads
from qtrace.traces import Trace
from qtrace.traces.manifest_file import DIGEST, MANIFEST, digest_line
from tests.cli.test_run import Ended, folder, options, process

__all__ = ["folder"]


def captured(capsys: pytest.CaptureFixture[str], name: str, *more: str, candidate: str = "off") -> Ended:
    return Ended(capsys, "capture", *options(candidate), "--out", name, *more)


def test_two_processes_capture_and_a_third_compares(folder: Path) -> None:
    for side in ("reference", "candidate"):
        ended = process("capture", *options(), "--side", side, "--out", f"{side}.trace")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(f"wrote {side}.trace: 9 calls, ")
    (folder / "models.py").unlink()
    ended = process("diff", "reference.trace", "candidate.trace", "--report", "report.json")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[-1] == "outcome: fault. 1 finding: layers.1 introduces an error."
    assert max(map(len, (line.rstrip() for line in lines))) <= 80
    assert any(line.split()[:2] == ["not", "confirmed"] for line in lines)
    report = loads((folder / "report.json").read_text())
    assert report.reference.source == "trace:reference.trace, captured from models.py:good"
    assert report.findings[0].module == "layers.1"


def test_the_exit_codes_are_those_of_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert captured(capsys, "a").code == 0
    assert captured(capsys, "b", "--side", "candidate").code == 0
    assert Ended(capsys, "diff", "a", "b", "--fail-on", "fault", "--quiet").code == 3
    assert Ended(capsys, "diff", "a", "a", "--fail-on", "fault", "--quiet").code == 0
    ended = Ended(capsys, "diff", "a", "missing")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "error: trace missing: no such folder; `qtrace capture` writes one\n"
    (folder / "a" / "tensors-00001.safetensors").unlink()
    ended = Ended(capsys, "diff", "a", "b")
    assert (ended.code, ended.out) == (1, "")
    assert "a/tensors-00001.safetensors: it is missing; the trace is not used, capture it again" in ended.err


def test_only_json_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    ended = Ended(capsys, "diff", "a", "a", "--report", "-")
    assert json.loads(ended.out)["outcome"] == "clean"


def test_a_trace_stands_for_a_model_wherever_a_spec_goes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    captured(capsys, "b", "--side", "candidate")
    said = "outcome: fault. 1 finding: layers.1 introduces an error.\n"
    for pair in (
        ("--reference", "trace:a", "--candidate", "models.py:off", "--inputs", "models.py:ids"),
        ("--reference", "models.py:good", "--candidate", "trace:b", "--inputs", "models.py:ids"),
        # The inputs are in the trace.
        ("--reference", "trace:a", "--candidate", "models.py:off"),
        ("--reference", "models.py:good", "--candidate", "trace:b"),
        ("--reference", "trace:a", "--candidate", "trace:b"),
    ):
        ended = Ended(capsys, "run", *pair, "--quiet")
        assert (ended.code, ended.out, ended.err) == (0, said, ""), pair
    ended = Ended(capsys, "run", *pair, "--inspect", "layers.1")
    assert "reference, call by call" in ended.out
    assert "candidate, call by call" in ended.out
    ended = Ended(capsys, "check", "--reference", "trace:a", "--candidate", "models.py:off", "--policy", "policy.yaml")
    assert ended.code == 2
    (folder / "policy.yaml").write_text("max_peir: 1e-4\n")
    ended = Ended(capsys, "check", "--reference", "trace:a", "--candidate", "models.py:off", "--policy", "policy.yaml")
    assert ended.code == 3
    ended = Ended(capsys, "check", "--reference", "trace:a", "--candidate", "models.py:good", "--policy", "policy.yaml")
    assert ended.code == 0
    ended = Ended(capsys, "modules", "--reference", "trace:a", "--candidate", "trace:b")
    assert "exact" in ended.out


def test_what_was_called_by_another_method_is_refused_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "models.py").open("a") as file:
        file.write("class Twice(Net):\n    def twice(self, ids): return self(ids), self(ids + 1)\n")
        file.write("def twice(): return Twice().eval()\n")
    twice = ("--reference", "models.py:twice", "--inputs", "models.py:ids")
    assert Ended(capsys, "capture", *twice, "--out", "a").code == 0
    assert Ended(capsys, "capture", *twice, "--out", "b", "--call", "twice").code == 0
    ended = Ended(capsys, "diff", "a", "b")
    assert (ended.code, ended.out) == (2, "")
    said = "error: a was captured by --call forward and b by --call twice; capture both by the same\n"
    assert ended.err == said
    ended = Ended(capsys, "run", "--reference", "trace:b", "--candidate", "models.py:twice", "--call", "twice")
    assert (ended.code, ended.out) == (2, "")
    # What its forward was handed first is not what `twice` was called with.
    assert "its model was called by twice, whose own arguments are not stored; give --inputs" in ended.err


def test_a_trace_may_be_named_as_run_takes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    captured(capsys, "b", "--side", "candidate")
    ended = Ended(capsys, "diff", "trace:a", "trace:b")
    assert "qtrace run --reference trace:a --candidate trace:b" in ended.said
    assert Ended(capsys, "show", "trace:a").out == Ended(capsys, "show", "a").out
    ended = Ended(capsys, "show", "trace:c")
    assert (ended.code, ended.err) == (1, "error: trace c: no such folder; `qtrace capture` writes one\n")


def test_a_trace_against_itself_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    (folder / "same").symlink_to("a")
    for other in ("a", "same", "./a"):
        assert "warning: reference and candidate are one trace" in Ended(capsys, "diff", "a", other).err
    captured(capsys, "b")
    assert "one trace" not in Ended(capsys, "diff", "a", "b").err


def test_other_versions_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    captured(capsys, "b", "--side", "candidate")
    assert Ended(capsys, "diff", "a", "b").err == ""
    plain = json.loads((folder / "b" / MANIFEST).read_text())
    plain["environment"]["versions"] |= {"torch": "1.0", "novel": "2"}
    text = json.dumps(plain).encode()
    (folder / "b" / MANIFEST).write_bytes(text)
    (folder / "b" / DIGEST).write_text(digest_line(text))
    said = " ".join(Ended(capsys, "diff", "a", "b").err.split())
    assert said == f"note: captured under other versions: torch {torch.__version__} against 1.0"
    assert Ended(capsys, "diff", "a", "b", "--quiet").err == ""


def test_names_cannot_write_to_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "models.py").open("a") as file:
        file.write("def escape():\n    net = nn.Sequential()\n")
        file.write("    net.add_module('red \\x1b[31m\\n', nn.Identity())\n    return net.eval()\n")
        file.write("def ones(): return torch.ones(2)\n")
    escape = ("--reference", "models.py:escape", "--inputs", "models.py:ones")
    assert Ended(capsys, "capture", *escape, "--out", "a").code == 0
    ended = Ended(capsys, "show", "a")
    assert "red \\x1b[31m\\n" in ended.out
    assert "\x1b" not in ended.out


def test_other_inputs_than_those_of_the_trace_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "models.py").open("a") as file:
        file.write("def others(): return {'ids': torch.arange(1, 13).reshape(1, 12)}\n")
    captured(capsys, "a")
    ended = Ended(
        capsys, "run", "--reference", "trace:a", "--candidate", "models.py:off", "--inputs", "models.py:others"
    )
    assert (ended.code, ended.out) == (2, "")
    assert "the reference a was captured on other inputs: ids int64 [1,12]" in ended.err


def test_a_candidate_that_is_made_from_the_reference_needs_it_live(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "models.py").open("a") as file:
        file.write("def same(reference): return reference\n")
    captured(capsys, "a")
    for made, what in (
        (("--wrap", "dtype"), "the wrapper dtype"),
        (("--candidate", "models.py:same"), "models.py:same"),
    ):
        ended = Ended(capsys, "run", "--reference", "trace:a", *made)
        assert (ended.code, ended.out) == (2, "")
        assert f"{what} makes the candidate from the reference, and trace:a is a trace" in ended.err


def test_only_what_traces_can_do_is_proposed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    captured(capsys, "b", "--side", "candidate")
    ended = Ended(capsys, "diff", "a", "b", "--tolerance", "1e-5")
    proposed = "qtrace run --reference trace:a --candidate trace:b --tolerance 1e-5 \\ --inspect layers.1"
    assert proposed in ended.said
    assert "qtrace debug" not in ended.out
    assert "qtrace ops" not in ended.out
    ended = Ended(capsys, *shlex.split(proposed.replace("\\ ", ""))[1:])
    assert ended.code == 0
    # It is found out by `diff`, but what each module adds is not.
    ended = Ended(capsys, "diff", "a", "b", "--no-local")
    command = "qtrace run --reference trace:a --candidate trace:b"
    assert f"Which module is at fault, by what accumulated: {command}" in ended.said
    ended = Ended(capsys, "diff", "a", "b", "--skip", "layers.1")
    assert "What each module adds" not in ended.out


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--only", "layer.*"), 2, "--only 'layer.*' matches no module; near: layers"),
        (("--max-bytes", "2KB"), 1, "trace a: more than 2,000 bytes are needed, reached at "),
        (("--max-bytes", "many"), 2, "--max-bytes many: expected a size, as in 500MB, 2GB or 1000000"),
        (("--out", "no/a"), 1, "trace no/a: the folder no does not exist; create it first"),
        (("--as", "int8"), 2, "'int8' is not one of 'float16', 'bfloat16'"),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence(
    more: tuple[str, ...], code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = captured(capsys, "a", *more)
    assert (ended.code, ended.out) == (code, "")
    assert said in " ".join(ended.err.split())
    assert not (folder / "a").exists()


def test_a_trace_is_not_overwritten_unless_that_is_meant(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    ended = captured(capsys, "a")
    assert (ended.code, ended.err) == (1, "error: trace a: something is there already; --force replaces a trace\n")
    assert captured(capsys, "a", "--force", "--only", "layers.*").code == 0
    assert Trace("a").manifest.selected == ("", "layers.0", "layers.1")


def test_a_model_that_raises_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = captured(capsys, "a", "--side", "candidate", candidate="raising")
    assert (ended.code, ended.out) == (1, "")
    assert "the candidate raised ValueError in layers.1 (Block): too bad; nothing was kept" in ended.err
    ended = captured(capsys, "a", "--side", "candidate", candidate="interrupted")
    assert ended.code == 130
    assert not [path for path in folder.iterdir() if path.name.startswith((".a", "a"))]


def test_small_forms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, more in {"small": ("--stats-only",), "narrow": ("--as", "bfloat16"), "outs": ("--outputs-only",)}.items():
        assert captured(capsys, name, *more).code == 0
    said = Ended(capsys, "show", "small").said
    assert "sketches of at most 1024 elements" in said
    assert "floats as bfloat16" in Ended(capsys, "show", "narrow").said
    assert "no arguments" in Ended(capsys, "show", "outs").said
    ended = Ended(
        capsys, "run", "--reference", "trace:small", "--candidate", "models.py:good", "--inputs", "models.py:ids"
    )
    assert ended.out.rstrip().splitlines()[-1].startswith("outcome: clean")
    assert "warning: compared by sketches" in " ".join(ended.err.split())


def test_show_lists_what_is_inside_and_reads_no_tensor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    shard = folder / "a" / "tensors-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    ended = Ended(capsys, "show", "a")
    assert ended.code == 0
    lines = [line.rstrip() for line in ended.out.splitlines()]
    assert lines[0] == "model     Net · 900 parameters · float32"
    assert any(line.split() == ["layers.0.up", "1", "float32", "[1,12,16]", "768", "B"] for line in lines)
    assert max(map(len, lines)) <= 80
    ended = Ended(capsys, "show", "a", "--module", "**")
    assert (ended.code, ended.out) == (1, "")
    assert "the bytes from" in ended.err


def test_show_prints_the_values_of_chosen_modules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    ended = Ended(capsys, "show", "a", "--module", "layers.*.up")
    names = [line.split()[0] for line in ended.out.splitlines() if line.startswith("layers")]
    assert names == ["layers.0.up", "layers.1.up"]
    assert ended.out.count("[[[") == 4
    ended = Ended(capsys, "show", "a", "--module", "nope")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --module 'nope' matches no module; `qtrace show TRACE` lists the paths\n"


def test_show_tells_the_statistics_of_the_whole_tensor_where_only_a_sketch_is_stored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "import torch\nramp = lambda: torch.arange(40000.0).reshape(2, 20000) ** 2 / 1e6\n"
    (folder / "ramps.py").write_text(source + "def same(): return torch.nn.Identity()\n")
    said = []
    for name, more in {"whole": (), "few": ("--stats-only",)}.items():
        words = ("--reference", "ramps.py:same", "--inputs", "ramps.py:ramp", "--out", name, *more)
        assert Ended(capsys, "capture", *words).code == 0
        said.append(Ended(capsys, "show", name, "--module", "<root>").out.splitlines())
    whole, few = ([line for line in lines if "float32" in line] for lines in said)
    assert len(few) == 2
    assert few == whole
    # A few elements are not printed as if they were all.
    assert not any("[" in line for line in said[1] if "float32" not in line)


def test_a_trace_is_not_captured_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured(capsys, "a")
    ended = Ended(capsys, "capture", "--reference", "trace:a", "--out", "b")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: the reference is a trace already, trace:a, and cannot run; capture the model itself\n"
    assert not (folder / "b").exists()


@pytest.mark.parametrize(
    ("text", "amount"), [("500MB", 500_000_000), ("2 gb", 2_000_000_000), ("1e6", 10**6), ("1.5K", 1500), ("7", 7)]
)
def test_sizes(text: str, amount: int) -> None:
    assert size(text) == amount


@pytest.mark.parametrize("text", ["", "MB", "-1", "nan", "0", "1XB", "1..5MB", "inf"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size"):
        size(text)
