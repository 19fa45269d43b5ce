"""Stepping one side while the other stands still, and what else runs at the prompt on that side's stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qtrace.report.records import Outcome
from tests.helpers.models import Chain, Stack, Wrapped, twin
from tests.helpers.scripted_prompt import IDS, Say, answers, line_of, masks, say

__all__ = ["masks", "say"]


def test_n_steps_one_side_while_the_other_stands_still(say: Say) -> None:
    reference = Chain()
    said, _ = say((reference, twin(reference)), torch.randn(2, 8), "n\nref\nn\ncand\np hidden.shape\nn\nq\n",
                  at=("act:exit",))  # fmt: skip
    stepped = [line for line in said.splitlines() if line.startswith("> ")]
    where = [(line.split()[1], line.split("(")[1].split(")")[0]) for line in stepped]
    first = int(where[0][1])
    assert where == [
        ("candidate", str(first)),
        ("candidate", str(first + 1)),
        ("reference", str(first)),
        ("reference", str(first + 1)),
        ("candidate", str(first + 1)),
        ("candidate", str(first + 2)),
    ]
    assert "torch.Size([2, 8])" in said


def test_s_goes_into_the_call_and_out_to_the_next_event_of_both(say: Say) -> None:
    reference = Stack()
    commands = "s\ns\nr\ns\np 'here'\nq\n"
    said, _ = say((reference, twin(reference)), IDS, commands, at=("layers.1:enter",))
    told = answers(said)
    assert "--Call--" in said
    assert "normed = self.norm(hidden)" in said
    assert "--Return--" in told["r"]
    assert "layers.1 (Block) has returned" in said
    assert "stopped by  the next call" in said
    assert "'here'" in said


def test_torchs_own_code_is_not_stepped_into(say: Say) -> None:
    reference = Stack()
    said, _ = say((reference, twin(reference)), IDS, "s\n", at=("head:enter",))
    assert "head (Linear) has returned" in said
    assert "--Call--" not in said


def test_breakpoints_in_a_file_stop_that_side_and_are_gone_afterwards(say: Say) -> None:
    import bdb

    reference = Stack()
    line = line_of("weight.softmax(-1)")
    said, _ = say((reference, twin(reference)), IDS, f"b {line}\nc\np weight.shape\nq\n", at=("layers.0:enter",))
    assert f"models.py({line})forward()" in said
    assert "torch.Size([1, 6, 6])" in said
    assert not bdb.Breakpoint.bplist


def test_breakpoints_of_another_debugger_in_the_process_are_its_own(say: Say) -> None:
    import bdb

    file = str(Path(__file__).parents[1] / "helpers" / "models.py")
    other = bdb.Bdb()
    other.set_break(file, line_of("weight.softmax(-1)"))
    try:
        reference = Stack()
        commands = f"b {line_of('normed = self.norm(hidden)')}\nc\nc\n"
        said, report = say((reference, twin(reference)), IDS, commands, at=("layers.1:enter",))
        assert said.count("(qtrace) ") == 3
        assert "normed = self.norm(hidden)" in said
        assert report.outcome is Outcome.CLEAN
        assert list(bdb.Breakpoint.bplist) == [(file, line_of("weight.softmax(-1)"))]
    finally:
        other.clear_all_breaks()


def test_modules_called_at_the_prompt_are_not_compared(say: Say) -> None:
    reference = Chain()
    said, report = say((reference, twin(reference)), torch.randn(2, 8), "p self.first(x).shape\nref\np self(x).shape\n"
                       "diff self.second(hidden)\nc\n", at=("second:enter",))  # fmt: skip
    assert said.count("torch.Size([2, 8])") == 2
    assert said.count("equal") == 1
    assert report.outcome is Outcome.CLEAN
    assert [(row.module, row.call) for row in report.rows if row.module == "first"] == [("first", 0), ("first", 1)]


def test_the_prompt_is_in_the_torch_state_of_its_side(say: Say) -> None:
    class Cast(Wrapped):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(*args, **kwargs)

    reference = Chain()
    said, _ = say((reference, Cast(twin(reference))), torch.randn(2, 8), "p torch.is_autocast_enabled('cpu')\nref\n"
                  "p torch.is_autocast_enabled('cpu')\ndiff hidden\nn\np torch.is_autocast_enabled('cpu')\n",
                  at=("second:enter",))  # fmt: skip
    assert [line for line in said.splitlines() if line in ("True", "False")] == ["True", "False", "False"]
    assert "SQNR" in said


@pytest.mark.parametrize("before", ["", "n\n"])
def test_a_local_that_is_assigned_at_the_prompt_holds(say: Say, before: str) -> None:
    reference = Stack()
    pair = reference, twin(reference)
    commands = f"{before}!hidden = hidden + 1\np normed.sum() < hidden.sum()\nc\n"
    said, report = say(pair, IDS, commands, at=("layers.0.query:exit",))
    assert "tensor(True)" in said
    assert report.outcome is Outcome.FAULT
    assert report.row("layers.0.out").peir == 0
    assert say(pair, IDS, "c\n", at=("layers.0.query:exit",))[1].outcome is Outcome.CLEAN
