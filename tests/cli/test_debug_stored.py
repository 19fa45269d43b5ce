"""`qtrace debug` beside a stored trace: at a terminal, from a file of commands, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_debug import MODELING, QUANT_TEXT_MODEL, ROOT, Terminal, folder, line_of_call, terminal
from tests.cli.test_run import Ended, options

__all__ = ["folder", "terminal"]


@pytest.mark.tico
def test_the_seeds_bug_against_a_stored_reference(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    pytest.importorskip("tico")
    from qtrace.cli import main

    trace = tmp_path / "reference.trace"
    with pytest.raises(SystemExit):
        main(["capture", str(ROOT / "configs/qwen3_vl_mask_bug.yaml"), "--side", "reference", "--out", str(trace)])
    (tmp_path / "candidate.py").write_text(
        "from qtrace.zoo.qwen3_vl import mask_bug, tiny\ndef candidate(): return mask_bug(tiny(seed=42))\n"
    )
    prompt = terminal("--reference", f"trace:{trace}", "--candidate", "candidate.py:candidate", cwd=tmp_path)
    found = prompt.prompted()
    assert "1. model.language_model passes a wrong attention_mask" in found
    assert "model.language_model.layers.0 (Qwen3VLTextDecoderLayer) is about to run" in found
    reference, candidate = (line_of_call(file) for file in (MODELING, QUANT_TEXT_MODEL))
    lines = prompt.type("diff attention_mask").splitlines()
    at = f"modeling_qwen3_vl.py:{reference} forward"
    assert re.split(r" {2,}", lines[0]) == ["reference", at, "float32", "[1,1,84,84]", "min -3.4e+38 max 0"]
    at = f"quant_text_model.py:{candidate} forward"
    assert re.split(r" {2,}", lines[1]) == ["candidate", at, "int64", "[1,84]", "min 1 max 1"]
    assert lines[2] == "shapes differ; reference is a causal mask (additive), candidate all ones"
    assert prompt.type("p type(self).__name__") == "'QuantQwen3VLTextModel'\n"
    assert "argument  attention_mask         float32 [1,1,84,84]" in prompt.type("ref")
    assert prompt.type("p attention_mask.shape") == "torch.Size([1, 1, 84, 84])\n"
    prompt.child.sendline("force")
    said, code = prompt.ended()
    assert "passed to the candidate: attention_mask at model.language_model.layers.0:enter" in said
    assert "outcome: clean. The candidate computes what the reference computes." in said
    assert code == 0


def test_a_terminal_completes_names_and_ctrl_c_stays(
    terminal: Callable[..., Terminal], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Ended(capsys, "capture", *options(), "--side", "reference", "--out", "stored").code == 0
    prompt = terminal("--reference", "trace:stored", "--candidate", "models.py:off", "--break", "layers.1.up:enter")
    prompt.prompted()
    prompt.type("ref")
    prompt.child.sendintr()
    assert "--KeyboardInterrupt--" in prompt.prompted()
    prompt.child.send("p inp\t.shape\n")
    assert "torch.Size([1, 12, 8])" in prompt.prompted()
    prompt.child.sendeof()
    said, code = prompt.ended()
    assert "The run ended at the prompt, at layers.1.up:enter; no hook is left." in " ".join(said.split())
    assert code == 0


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_it_finds_the_culprit_from_what_accumulated_and_stops_there(
    folder: Path, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    assert Ended(capsys, "capture", *options(), "--side", side, "--out", "stored").code == 0
    (folder / "commands.txt").write_text("args\nnext-fault\nc\nout\nc\n")
    # No inputs are given: they come out of the trace.
    other = ("--candidate", "models.py:off") if side == "reference" else ("--reference", "models.py:good")
    ended = Ended(capsys, "debug", f"--{side}", "trace:stored", *other, "--commands", "commands.txt")
    assert ended.code == 0
    assert "1. layers.1 introduces an error" in ended.out
    assert "not confirmed" in ended.out
    assert "stopped by  breakpoint layers.1:enter#0" in ended.out
    assert "layers.1.down (Linear) is about to run\nstopped by  a fault" in ended.out
    assert "stopped by  breakpoint layers.1:exit#0" in ended.out
    assert "outcome: fault." in ended.out


SEVERAL = """
class Late(Net):
    def forward(self, ids):
        out = super().forward(ids)
        return {"logits": out["logits"] * (2 if ids.shape[1] == 7 else 1)}

def late(): return Late().eval()
def several(): return [{"ids": torch.arange(n).reshape(1, n)} for n in (5, 7, 9)]
"""


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_of_several_samples_it_stops_in_the_one_that_differs(
    folder: Path, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    with (folder / "models.py").open("a") as file:
        file.write(SEVERAL)
    both = options("late", "several")
    assert Ended(capsys, "capture", *both, "--side", side, "--out", "stored").code == 0
    (folder / "commands.txt").write_text("args\nref\np ids.shape\ncand\np ids.shape\nq\n")
    ended = Ended(capsys, "debug", *both, f"--{side}", "trace:stored", "--commands", "commands.txt")
    assert ended.code == 0, ended.err
    assert ended.out.count("int64  [1,7]") == 2
    assert ended.out.count("torch.Size([1, 7])") == 1
    assert ended.out.count("has returned") + ended.out.count("is about to run") == 1


def test_both_stored_is_refused_before_anything_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "capture", *options(), "--side", "reference", "--out", "stored").code == 0
    both = ("--reference", "trace:stored", "--candidate", "trace:stored")
    ended = Ended(capsys, "debug", *both, "--commands", "quit.txt")
    assert ended.code == 2
    assert ended.err == (
        "error: both sides are stored traces, which hold tensors and no code, and `qtrace debug` needs a live model on "
        "one side; `qtrace run --inspect MODULE` shows the tensors of two traces side by side\n"
    )
    assert ended.out == ""


def test_other_inputs_than_the_traces_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "models.py").open("a") as file:
        file.write('def more(): return {"ids": torch.arange(12).reshape(1, 12) + 1}\n')
    assert Ended(capsys, "capture", *options(), "--side", "reference", "--out", "stored").code == 0
    ended = Ended(capsys, "debug", *options(inputs="more"), "--reference", "trace:stored", "--commands", "quit.txt")
    assert ended.code == 2
    assert "the reference stored was captured on other inputs" in ended.err
    assert "(qtrace)" not in ended.out
