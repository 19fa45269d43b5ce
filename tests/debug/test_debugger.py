"""The prompt with two sides, scripted: stops, stacks, values on both sides, handing over, and leaving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import qtrace
from qtrace.debug import Script
from qtrace.errors import ForwardError, SourceError
from qtrace.report.records import Outcome
from tests.helpers.models import Chain, Stack, twin, wrap_children
from tests.helpers.scripted_prompt import IDS, INPUTS, Say, answers, line_of, masks, say

__all__ = ["masks", "say"]


def test_both_stand_in_the_code_that_makes_the_call(say: Say, masks: tuple[nn.Module, nn.Module]) -> None:
    told = answers(say(masks, INPUTS, "diff mask\nup\nref\nwhere\nwhere2\n", at=("layers.0:enter",))[0])
    at = f"models.py:{line_of('hidden = layer(hidden, mask=mask)')}"
    lines = told["diff mask"].splitlines()
    assert lines[0].split() == f"reference {at} forward float32 [6,6] min -3.4e+38 max 0".split()
    assert lines[1].split() == f"candidate {at} forward int64 [1,6] min 1 max 1".split()
    assert lines[2] == "shapes differ; reference is a causal mask (additive), candidate all ones"
    # Nothing but the model's own frames, and both sides have one.
    assert told["up"] == "*** Oldest frame\n"
    assert told["ref"].startswith("> reference ")
    assert "hidden = layer(hidden, mask=mask)" in told["ref"]
    assert told["where"].count("forward()") == 1
    assert told["where2"].splitlines()[1].split() == [">", at, "forward", "|", ">", at, "forward"]


def test_frames_of_wrappers_are_there_and_the_name_is_looked_for_outwards(say: Say) -> None:
    reference = Stack()
    candidate = wrap_children(reference)
    told = answers(say((reference, candidate), IDS, "p type(self).__name__\ndiff normed\ndiff ids\nup\nup\ndiff ids\n",
                       at=("layers.0.query:enter",))[0])  # fmt: skip
    assert told["p type(self).__name__"] == "'Block'\n"
    assert told["diff normed"].splitlines()[-1] == "equal"
    assert told["diff ids"].splitlines()[-1] == "equal"


def test_force_once_makes_the_rest_agree_also_where_the_tensor_is_handed_on(
    say: Say, masks: tuple[nn.Module, nn.Module]
) -> None:
    said, report = say(masks, INPUTS, "force\n", at=("layers.0:enter",))
    assert "passed to the candidate: mask at layers.0:enter" in said
    assert report.outcome is Outcome.CLEAN
    assert report.warnings == (
        "the candidate received the reference's mask at layers.0:enter; mask at layers.1:enter: "
        "what follows is not its own result",
    )
    assert say(masks, INPUTS, "continue\n", at=("layers.0:enter",))[1].outcome is Outcome.FAULT


def test_force_at_an_exit_replaces_the_output(say: Say) -> None:
    reference = Stack()
    candidate = twin(reference)
    with torch.no_grad():
        candidate.get_parameter("layers.0.value.weight").mul_(2)
    said, report = say((reference, candidate), IDS, "out\nforce\n", at=("layers.0.value:exit",))
    assert "PEIR" in answers(said)["out"]
    assert report.outcome is Outcome.CLEAN
    assert report.row("layers.0.value").peir is not None


def test_force_reaches_what_a_module_wrote_in_place(say: Say) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.layer(x)
            self.act(hidden)
            return hidden

    reference = InPlace().eval()
    candidate = twin(reference)
    candidate.act = nn.Hardtanh(0, 0.01, inplace=True)
    assert say((reference, candidate), torch.randn(3, 4), "c\n", at=("act:exit",))[1].outcome is Outcome.FAULT
    assert say((reference, candidate), torch.randn(3, 4), "force\n", at=("act:exit",))[1].outcome is Outcome.CLEAN


def test_heal_is_for_every_later_call_and_stops_there_no_more(say: Say) -> None:
    reference = Chain()
    candidate = twin(reference)
    with torch.no_grad():
        candidate.get_parameter("first.weight").add_(0.5)
    said, report = say((reference, candidate), torch.randn(2, 8), "heal\n", at=("first:exit",))
    assert said.count("first (Linear)") == 1
    assert report.outcome is Outcome.FAULT or report.row("", call=0).peir is not None
    assert "output at first:exit; output at first:exit#1" in report.warnings[0]
    once = say((reference, candidate), torch.randn(2, 8), "force\nq\n", at=("first:exit",))[0]
    assert "first (Linear, call #1) has returned" in once


def test_there_may_be_nothing_to_hand_over(say: Say) -> None:
    reference = Chain()
    said, _ = say((reference, twin(reference)), torch.randn(2, 8), "force\n", at=("second:enter",))
    assert "*** nothing to hand over: the candidate holds the same values" in said


def test_a_condition_stops_where_a_row_satisfies_it(say: Say, masks: tuple[nn.Module, nn.Module]) -> None:
    said, _ = say(masks, INPUTS, "row\nq\n", when=("peir > 1e-3",))
    assert "layers.0.out (Linear) has returned" in said
    assert "stopped by  peir > 1e-3 holds" in said
    peir = next(line.split()[1] for line in answers(said)["row"].splitlines() if line.split()[:1] == ["peir"])
    assert float(peir) > 1e-3


def test_nobody_is_silent_about_rows_without_numbers(say: Say) -> None:
    reference = Chain()
    candidate = twin(reference)
    with torch.no_grad():
        candidate.get_parameter("second.weight")[0, 0] = float("nan")
    _, report = say((reference, candidate), torch.randn(2, 8), "q\n", when=("peir > 100",))
    assert "no row satisfies 'peir > 100'" in report.warnings
    assert any("non_finite; 'status != compared' stops there" in warning for warning in report.warnings)
    said, _ = say((reference, candidate), torch.randn(2, 8), "q\n", when=("status == non_finite",))
    assert "second (Linear) has returned" in said


def test_next_fault_goes_to_where_an_error_is_made(say: Say, masks: tuple[nn.Module, nn.Module]) -> None:
    with torch.no_grad():
        masks[1].get_parameter("head.weight").mul_(2)
    said, report = say(masks, INPUTS, "next-fault\nhelp next-fault\nforce\nnext-fault\nforce\n",
                       at=("embed:enter", "layers.1:exit"))  # fmt: skip
    faults = said.split("stopped by  a fault")
    assert faults[0].splitlines()[-1] == "layers.0 (Block) is about to run"
    assert faults[1].splitlines()[-1] == "head (Linear) has returned"
    assert len(faults) == 3
    assert report.outcome is Outcome.CLEAN


@pytest.mark.parametrize("leave", ["quit\nn\n", "q\nn\n", "EOF\nn\n", "exit\nn\n", ""])
def test_quitting_ends_the_run_and_leaves_nothing(say: Say, masks: tuple[nn.Module, nn.Module], leave: str) -> None:
    buffers = [{name: b.clone() for name, b in model.named_buffers()} for model in masks]
    random = torch.get_rng_state()
    said, report = say(masks, INPUTS, f"n\n{leave}", at=("layers.0:enter",))
    assert report.error == "ended at the prompt, after layers.0:enter"
    assert report.outcome is Outcome.INCONCLUSIVE
    assert "layers.0.out" in {row.module for row in report.rows}
    assert "layers.1" not in {row.module for row in report.rows}
    assert said.count("(qtrace) ") == 2
    assert torch.equal(random, torch.get_rng_state())
    for model, kept in zip(masks, buffers, strict=True):
        assert all(torch.equal(b, kept[name]) for name, b in model.named_buffers())
    # And both models still run, and agree with themselves.
    assert qtrace.trace(masks[0], masks[0], INPUTS).outcome is Outcome.CLEAN


def test_a_model_that_swallows_everything_is_left_as_well(say: Say) -> None:
    class Swallows(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                hidden: torch.Tensor = self.second(self.first(x))
            except:  # noqa: E722
                hidden = x
            out: torch.Tensor = self.first(hidden)
            return out

    reference = Swallows()
    _, report = say((reference, twin(reference)), torch.randn(2, 8), "s\nn\nq\n", at=("first:exit",))
    assert report.error == "ended at the prompt, after second:enter"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("p 1 / 0", "*** ZeroDivisionError: division by zero"),
        ("diff 1 / 0", "*** reference: ZeroDivisionError: division by zero"),
        ("diff maks", "*** candidate: NameError: no frame knows maks; did you mean mask"),
        # No frame has it, and Python's own function is not meant.
        ("diff input", "*** candidate: NameError: no frame knows input;"),
        ("diff", "*** diff wants an expression, as in: diff attention_mask"),
        ("diff (", "SyntaxError"),
        ("diff hidden.shape", "equal"),
        ("diff hidden vs hidden * 2", "gain: factor 2"),
        ("diff None vs False", "counts as equal"),
        (
            "diff dict.fromkeys('abcdefghij', 1) vs {**dict.fromkeys('abcdefghij', 1), 'c': 2}",
            "equal: a, b, d, e, f, g and 3 more",
        ),
        ("raise RuntimeError('odd')", "*** RuntimeError: odd"),
        ("import sys; sys.exit(3)", "*** SystemExit: 3"),
        ("out", "the call is about to run, so there is no output yet"),
        ("row", "the call is about to run, so there is no row yet"),
        ("cand", "this is the candidate already"),
        ("run", "*** the models cannot be started again from here"),
        ("commands 1", "*** command lists for breakpoints are not available here"),
        ("help heal", "As `force`, here and at every later call"),
        ("help", "next-fault  go on to where the next error is made"),
        ("help q", "End the run: no hook is left on the models"),
        ("help n", "the other side stands still"),
        ("down", "*** Newest frame"),
        ("args", "only the candidate has a tensor"),
    ],
)
def test_a_command_that_goes_wrong_tells_so_and_the_prompt_stays(
    say: Say, masks: tuple[nn.Module, nn.Module], command: str, words: str
) -> None:
    reference, candidate = masks
    reference.mask = lambda hidden, attention_mask: None  # type: ignore[assignment]
    said, report = say((reference, candidate), INPUTS, f"{command}\np 'still ' 'here'\nc\n", at=("layers.0:enter",))
    assert words in said
    assert "'still here'" in said
    assert report.error is None


def test_every_command_has_its_help(say: Say) -> None:
    reference = Chain()
    names = ["diff", "ref", "cand", "args", "out", "row", "where2", "force", "heal", "next-fault", "continue", "quit"]
    commands = "".join(f"help {name}\n" for name in names)
    said, _ = say((reference, twin(reference)), torch.randn(2, 8), commands, at=("second:enter",))
    told = answers(said)
    for name in names:
        assert len(told[f"help {name}"].split()) > 5
        assert "No help" not in told[f"help {name}"]


def test_a_model_that_raises_under_the_prompt_raises_after_it(say: Say) -> None:
    reference = Chain()
    candidate = twin(reference)

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("too bad")

    candidate.second.forward = broken  # type: ignore[union-attr]
    with pytest.raises(ForwardError, match="too bad"):
        say((reference, candidate), torch.randn(2, 8), "c\n", at=("second:enter",))
    with pytest.raises(ForwardError, match="too bad"):
        say((reference, candidate), torch.randn(2, 8), "n\nw\nn\nc\n", at=("second:enter",))


def test_a_stop_at_the_root_needs_no_frame_of_the_model(say: Say) -> None:
    reference = Chain()
    said, _ = say((reference, twin(reference)), torch.randn(2, 8), "args\ns\nw\nq\n", at=("<root>:enter",))
    assert "candidate in qtrace itself, which calls the model" in said
    assert "float32  [2,8]" in answers(said)["args"]
    assert "forward()" in answers(said)["w"]


def test_a_call_that_the_candidate_passed_earlier_is_looked_at_and_not_forced(say: Say) -> None:
    class InOrder(nn.Module):
        def __init__(self, *order: str) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abcd"})
            self.order = order

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = {name: self.layers[name](x) for name in self.order}
            out: torch.Tensor = made["a"] - made["b"] * made["c"] + made["d"]
            return out

    # Where the order differs first, the reference goes ahead, and the candidate the next time.
    pair = InOrder(*"abcd").eval(), InOrder(*"badc").eval()
    said, report = say(pair, torch.randn(2, 4), "force\nout\nc\n", at=("layers.d:exit",))
    assert "*** the candidate passed this call before the reference came to it" in answers(said)["force"]
    assert "SQNR" in answers(said)["out"]
    assert report.warnings == ()
    said, report = say(pair, torch.randn(2, 4), "force\n", at=("layers.a:exit",))
    assert "passed to the candidate: output at layers.a:exit" in said


def test_a_file_of_commands_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--commands .*nowhere.txt: No such file or directory; expected a file"):
        Script(tmp_path / "nowhere.txt")


def test_several_samples_stop_in_each(say: Say) -> None:
    reference = Chain()
    inputs = [torch.randn(2, 8), torch.randn(3, 8)]
    said, report = say((reference, twin(reference)), inputs, "p x.shape\nc\np x.shape\nc\n", at=("second:enter",))
    assert said.count("second (Linear) is about to run") == 2
    assert "torch.Size([3, 8])" in said
    assert report.error is None
