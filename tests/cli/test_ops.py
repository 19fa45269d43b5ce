"""`qtrace ops` as a user meets it: what it prints, its JSON, its exit codes, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtrace.report.operator_view import operator_outcome, operator_view
from qtrace.report.records import Relation, Status, TensorSpec
from qtrace.report.records.operators import (
    SCHEMA,
    Agreement,
    CodeLine,
    CodePlace,
    Differing,
    Operator,
    OperatorView,
    Partner,
    Split,
)
from tests.cli.test_run import Ended, folder, options, process
from tests.helpers import golden_files
from tests.report.test_table import text_of

__all__ = ["folder"]

CODE = tuple(
    CodeLine(number, text)
    for number, text in (
        (228, "    attn_weights = torch.matmul(query, key_states.transpose(2, 3)) * scaling"),
        (229, "    if attention_mask is not None:"),
        (230, "        attn_weights = attn_weights + attention_mask"),
        (231, ""),
        (232, "    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)"),
    )
)
PLACE = CodePlace("transformers/models/qwen3_vl/modeling_qwen3_vl.py", 230, "eager_attention_forward", CODE)
ELSEWHERE = CodePlace("tico/quantization/wrapq/wrappers/qwen_vl/quant_text_attention.py", 629, "_forward_unrolled")
ATTENTION = "model.language_model.layers.0.self_attn"


def tensor(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype)


def view() -> OperatorView:
    """Return what is found inside the attention that is handed a wrong mask."""
    whole, head = tensor(1, 2, 84, 84), tensor(1, 84, 84)
    sliced = Relation("slice", {"axis": 1, "index": 0})
    add = "aten.add.Tensor"
    return OperatorView(
        module=ATTENTION,
        candidate=f"wrapped.{ATTENTION.replace('.', '.wrapped.')}.wrapped",
        call=0,
        calls=(1, 1),
        agrees=False,
        error=0.5523,
        arguments=(
            Differing(
                "attention_mask",
                Status.SHAPE_MISMATCH,
                TensorSpec((1, 1, 84, 84), "float32", min=-3.4028e38, max=0.0),
                TensorSpec((1, 84), "int64", min=1.0, max=1.0),
            ),
        ),
        outputs=(Differing("0", Status.COMPARED, tensor(1, 84, 64), tensor(1, 84, 64), peir=0.5523),),
        split=Split(1, 1, agreed=Agreement(0, 0, sliced, 8.7e-7), error=1.0, arguments=("attention_mask",)),
        reference_operators=(
            Operator(index=0, name="aten.mul.Tensor", outputs=(whole,), settings="other=0.17", place=PLACE),
            Operator(
                index=1, name=add, outputs=(whole,), inputs=(0,), given=("attention_mask",), place=PLACE, own=PLACE
            ),
        ),
        candidate_operators=(
            Operator(index=0, name="aten.bmm.default", outputs=(head,), partner=Partner((0,), sliced), place=ELSEWHERE),
            Operator(index=1, name=add, outputs=(head,), inputs=(0,), place=ELSEWHERE, module="inner", own=PLACE),
        ),
    )


@pytest.mark.parametrize("everything", [False, True], ids=["short", "all"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_view_reads_as_its_golden_file(width: int, everything: bool) -> None:
    parts = [*operator_view(view(), width=width, everything=everything), operator_outcome(view())]
    text = text_of(parts, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    golden_files.same_as_golden(text, f"operators{'_all' if everything else ''}.{width}.txt")


# As a process, and in this one.


def test_the_operators_of_a_fault_are_shown_with_their_code(folder: Path) -> None:
    ended = process("ops", *options(), "--module", "layers.1", "--report", "view.json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert lines[-1] == "the outputs differ. They part at aten.relu.default and aten.add.Tensor."
    assert any("hidden = hidden + 0.5" in line and line.lstrip().startswith("> ") for line in lines)
    assert max(len(line.rstrip()) for line in lines) <= 80
    found = json.loads((folder / "view.json").read_text())
    assert found["schema"] == SCHEMA
    split = found["split"]
    operator = found["candidate_operators"][split["candidate"]]
    assert operator["place"]["function"] == "forward"
    assert operator["settings"] == "other=0.5"
    assert found["reference_operators"][split["reference"]]["name"] == "aten.relu.default"


def test_a_module_that_agrees_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "ops", *options(), "--module", "layers.0")
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == "the outputs agree. Nothing parts inside."


def test_an_error_that_comes_in_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "ops", *options(), "--module", "head")
    assert ended.code == 0
    assert "input differs already" in ended.said


def test_stdout_is_only_json_where_it_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "ops", *options(), "--module", "layers.1", "--report", "-")
    assert ended.code == 0
    assert json.loads(ended.out)["module"] == "layers.1"
    assert "the outputs differ." in ended.err


def test_all_operators_are_listed_on_demand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "ops", *options(), "--module", "layers.1", "--all")
    assert ended.out.count("here they part") == 2
    assert "Operators of the reference" in ended.out
    assert "Operators of the candidate" in ended.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--module", "layer.1"], 2, "error: --module layer.1: the reference has no module of this path; did you mean"),
        (["--module", "layers.*"], 2, "error: --module layers.*: the reference has no module of this path"),
        (["--module", "layers"], 2, "error: --module layers: the reference's layers is never called on these inputs;"),
        (["--module", "layers.1", "--call-index", "1"], 2, "error: --call-index 1: the reference's layers.1 is called"),
        ([], 2, "error: Missing option '--module'"),
        (["--module", "layers.1", "--report", "a.html"], 2, "error: report a.html: the operator view is written as"),
        (["--module", "layers.1", "--report", "no/a.json"], 1, "error: report no/a.json: the folder no does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    ended = Ended(capsys, "ops", *options(), *words)
    assert ended.code == code
    assert ended.err.startswith(said)
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""


def test_a_stored_side_has_no_operators(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Ended(capsys, "capture", *options(), "--side", "candidate", "--out", "stored").code == 0
    ended = Ended(capsys, "ops", *options(), "--candidate", "trace:stored", "--module", "layers.1")
    assert ended.code == 2
    assert ended.err == (
        "error: the candidate is a stored trace, which holds tensors and no code, and `qtrace ops` needs both models; "
        "`qtrace run --inspect MODULE` shows the tensors of a trace beside the other side's\n"
    )


def test_a_renamed_module_is_looked_into(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Ended(capsys, "ops", *options("other"), "--module", "head").err
    assert said.startswith("error: --module head: no module of the candidate answers to it")
    ended = Ended(capsys, "ops", *options("other"), "--module", "head", "--rename", "net=head")
    assert ended.code == 0
    assert "candidate  net" in ended.out


def test_help_names_no_format_that_it_does_not_write(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Ended(capsys, "ops", "--help").out
    assert ".json" in said
    assert ".html" not in said


def test_a_model_that_raises_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "ops", *options("raising"), "--module", "layers.1")
    assert ended.code == 1
    assert ended.err == "error: the candidate raised ValueError: too bad\n"


def test_the_panel_of_a_run_names_the_command_and_the_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ended(capsys, "run", *options(), "--report", "report.json")
    assert "--module layers.1" in ended.said
    (finding,) = json.loads((folder / "report.json").read_text())["findings"]
    source = (folder / "models.py").read_text().splitlines()
    assert source[finding["source"]["candidate"]["line"] - 1].strip() == "hidden = hidden + 0.5"
