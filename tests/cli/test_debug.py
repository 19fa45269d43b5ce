"""`qtrace debug` as a user meets it: at a terminal, from a file of commands, and with wrong input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.cli.test_app import loaded_after
from tests.cli.test_run import MODELS, Ended, options, process

ROOT = Path(__file__).parents[2]
PROMPT = r"\(qtrace\) "


class Terminal:
    """`qtrace debug` at a pseudo-terminal of 80 columns; `said` is what it has printed since the last prompt."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        environment.pop("PYTHONBREAKPOINT", None)
        self.child: Any = pexpect.spawn(
            sys.executable,
            ["-m", "qtrace", "debug", *arguments],
            cwd=str(cwd),
            env=environment,
            encoding="utf-8",
            dimensions=(40, 200),
            timeout=120,
        )
        self.said = ""

    def prompted(self) -> str:
        self.child.expect(PROMPT)
        self.said = self.child.before.replace("\r\n", "\n")
        return self.said

    def type(self, line: str) -> str:
        """Type a command, and return what it printed until the next prompt."""
        self.child.sendline(line)
        return self.prompted().partition("\n")[2]

    def ended(self) -> tuple[str, int]:
        """Return what was printed at the end, and the exit code."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.before.replace("\r\n", "\n"), self.child.exitstatus


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "quit.txt").write_text("quit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    return tmp_path


@pytest.fixture
def terminal(folder: Path) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str, cwd: Path = folder) -> Terminal:
        started.append(Terminal(*arguments, cwd=cwd))
        return started[-1]

    yield start
    for one in started:
        one.child.close(force=True)


@pytest.mark.tico
def test_the_seeds_bug_is_shown_by_one_command(terminal: Callable[..., Terminal]) -> None:
    pytest.importorskip("tico")
    prompt = terminal("configs/qwen3_vl_mask_bug.yaml", cwd=ROOT)
    found = prompt.prompted()
    assert "1. model.language_model passes a wrong attention_mask" in found
    assert "model.language_model.layers.0 (Qwen3VLTextDecoderLayer) is about to run" in found
    reference, candidate = (line_of_call(file) for file in (MODELING, QUANT_TEXT_MODEL))
    lines = prompt.type("diff attention_mask").splitlines()
    assert re.split(r" {2,}", lines[0]) == [
        "reference",
        f"modeling_qwen3_vl.py:{reference} forward",
        "float32",
        "[1,1,84,84]",
        "min -3.4e+38 max 0",
    ]
    assert re.split(r" {2,}", lines[1]) == [
        "candidate",
        f"quant_text_model.py:{candidate} forward",
        "int64",
        "[1,84]",
        "min 1 max 1",
    ]
    assert lines[2] == "shapes differ; reference is a causal mask (additive), candidate all ones"
    assert prompt.type("p type(self).__name__") == "'QuantQwen3VLTextModel'\n"
    assert "ptq_wrapper.py" in prompt.type("up")
    assert "modeling_qwen3_vl.py" in prompt.type("ref")
    assert prompt.type("p attention_mask.shape") == "torch.Size([1, 1, 84, 84])\n"
    assert "output_capturing.py" in prompt.type("up")
    assert prompt.type("p type(self).__name__") == "'Qwen3VLTextModel'\n"
    prompt.child.sendline("force")
    said, code = prompt.ended()
    assert "passed to the candidate: attention_mask at model.language_model.layers.0:enter" in said
    assert "outcome: clean. The candidate computes what the reference computes." in said
    assert code == 0


MODELING = "transformers/models/qwen3_vl/modeling_qwen3_vl.py"
QUANT_TEXT_MODEL = "tico/quantization/wrapq/wrappers/qwen_vl/quant_text_model.py"


def line_of_call(file: str) -> int:
    """Return the line at which the text model calls its layers."""
    import torch

    text = (Path(torch.__file__).parent.parent / file).read_text()
    lines = [number for number, line in enumerate(text.splitlines(), 1) if "layer_outputs = decoder_layer(" in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.tico
def test_a_breakpoint_inside_the_attention_stands_in_both_attentions(terminal: Callable[..., Terminal]) -> None:
    pytest.importorskip("tico")
    at = "model.language_model.layers.0.self_attn.o_proj:enter"
    prompt = terminal("configs/qwen3_vl_mask_bug.yaml", "--break", at, cwd=ROOT)
    said = prompt.prompted()
    assert "quant_text_attention.py" in said.splitlines()[-2]
    assert re.search(r"reference +modeling_qwen3_vl.py:\d+ forward", said)
    assert re.search(r"candidate +quant_text_attention.py:\d+ _?forward", said)
    # The name is not the same on both sides, and what it holds is there.
    assert "all ones" in prompt.type("diff attention_mask")
    prompt.child.sendeof()
    said, code = prompt.ended()
    assert f"The run ended at the prompt, at {at}; no hook is left." in " ".join(said.split())
    assert code == 0


def test_ctrl_c_at_the_prompt_stays_there_and_ctrl_d_leaves(terminal: Callable[..., Terminal]) -> None:
    prompt = terminal(*options(), "--break", "layers.1:enter")
    prompt.prompted()
    prompt.child.sendintr()
    assert "--KeyboardInterrupt--" in prompt.prompted()
    assert prompt.type("p 1 / 0") == "*** ZeroDivisionError: division by zero\n"
    assert prompt.type("p x.shape") == "torch.Size([1, 12, 8])\n"
    prompt.child.send("diff self.head.wei\t\n")
    assert "float32  [20,8]" in prompt.prompted()
    prompt.child.sendeof()
    assert prompt.ended()[1] == 0


def test_ctrl_c_while_the_models_run_is_an_interruption(terminal: Callable[..., Terminal]) -> None:
    prompt = terminal(*options("interrupted"), "--break", "layers.1:enter")
    prompt.prompted()
    prompt.child.sendline("c")
    said, code = prompt.ended()
    assert "error: interrupted; the run ended there, and no hook is left" in said
    assert code == 130


def test_without_a_breakpoint_it_stops_at_the_culprit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "commands.txt").write_text("# where the error is made\n\nargs\nnext-fault\nforce\nout\nc\n")
    ended = Ended(capsys, "debug", *options(), "--commands", "commands.txt")
    assert ended.code == 0
    assert "1. layers.1 introduces an error" in ended.out
    assert "stopped by  breakpoint layers.1:enter#0" in ended.out
    assert "layers.1.down (Linear) is about to run\nstopped by  a fault" in ended.out
    assert "stopped by  breakpoint layers.1:exit#0" in ended.out
    assert ended.out.rstrip().endswith("outcome: clean. The candidate computes what the reference computes.")
    assert "the candidate received the reference's input at layers.1.down:enter" in ended.err


def test_a_clean_pair_has_nothing_to_stop_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "debug", *options("good"), "--commands", "quit.txt")
    assert ended.code == 0
    assert "outcome: clean." in ended.out
    assert "(qtrace)" not in ended.out
    assert "There is no finding to stop at" in ended.err


def test_too_little_to_compare_is_no_place_to_stop_either(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "debug", *options("other"), "--commands", "quit.txt")
    assert ended.code == 4
    assert "outcome: inconclusive." in ended.out


def test_an_exception_in_the_candidate_is_stopped_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "commands.txt").write_text("s\nn\nn\nn\nc\n")
    ended = Ended(capsys, "debug", *options("raising"), "--commands", "commands.txt")
    assert "layers.1 (Block) is about to run" in ended.out
    assert 'raise ValueError("too bad")' in ended.out
    assert ended.code == 1
    assert "error: the candidate raised ValueError in layers.1 (Block): too bad (models.py:" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--break", "layer.*"], 2, "--break 'layer.*' matches no module; near: layers.1, layers.0, layers"),
        (["--break", "layers.1:begin"], 2, "--break 'layers.1:begin': 'begin' is no event of a call"),
        (["--break-when", "peir >> 1"], 2, "--break-when 'peir >> 1': at column 7 (>): expected a number after >"),
        (["--break-when", "pier > 1"], 2, "at column 1 (pier): pier is no column; did you mean peir"),
        (["--commands", "gone.txt"], 1, "--commands gone.txt: No such file or directory; expected a file of prompt"),
        (["--only", "layer.*", "--break", "head"], 2, "--only 'layer.*' matches no module"),
    ],
)
def test_wrong_options_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    scripted = [] if "--commands" in arguments else ["--commands", "quit.txt"]
    ended = Ended(capsys, "debug", *options(), *scripted, *arguments)
    assert ended.code == code
    assert words in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert "(qtrace)" not in ended.out


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("layers", "--break 'layers': the reference never calls layers; `qtrace modules` lists what is called"),
        ("head#3", "--break 'head#3': the reference calls head once, so the last call is #0"),
    ],
)
def test_a_breakpoint_that_nobody_comes_to_is_an_error_at_the_end(
    folder: Path, capsys: pytest.CaptureFixture[str], place: str, words: str
) -> None:
    ended = Ended(capsys, "debug", *options(), "--commands", "quit.txt", "--break", place)
    assert ended.code == 1
    assert ended.err == f"error: {words}\n"
    assert "outcome: fault." in ended.out


def test_the_options_of_the_comparison_hold_at_the_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(
        capsys, "debug", *options("other"), "--rename", "net=head", "--break", "head:enter", "--commands", "quit.txt"
    )
    assert "head (Linear) is about to run" in ended.out
    assert ended.code == 0


def test_a_run_that_went_on_and_compared_too_little_is_inconclusive(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "commands.txt").write_text("c\n")
    ended = Ended(capsys, "debug", *options("other"), "--break", "<root>:enter", "--commands", "commands.txt")
    assert "outcome: inconclusive." in ended.out
    assert ended.code == 4


def test_ctrl_c_while_the_culprit_is_looked_for_opens_no_prompt(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Ended(capsys, "debug", *options("interrupted"), "--commands", "quit.txt")
    assert ended.code == 130
    assert "(qtrace)" not in ended.out


def test_a_condition_that_no_row_satisfies_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "debug", *options(), "--commands", "quit.txt", "--break-when", "peir > 100")
    assert ended.code == 0
    assert "warning: no row satisfies 'peir > 100'" in ended.err


def test_without_a_terminal_it_refuses_before_anything_is_loaded(folder: Path) -> None:
    (folder / "models.py").write_text("raise SystemExit('loaded')")
    ended = process("debug", *options())
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: stdin is no terminal, so nobody can type at the prompt; run it in a terminal, "
        "or give --commands FILE with the prompt's commands, one a line\n"
    )


def test_breakpoints_can_be_switched_off_as_pythons_own(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    ended = Ended(capsys, "debug", *options(), "--break", "head")
    assert ended.code == 0
    assert "(qtrace)" not in ended.out
    assert "PYTHONBREAKPOINT=0 switches breakpoints off: the run did not stop." in ended.err


def test_help_is_light() -> None:
    assert loaded_after("debug", "--help") == []
