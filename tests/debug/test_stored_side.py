"""A stored trace as one side of the debugger: what it shows, what it refuses, and the live side as ever."""

from __future__ import annotations

import copy
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.errors import UsageError
from qtrace.report.records import Outcome
from qtrace.traces import Form
from tests.engine.test_alignment_weights import Bypassing
from tests.helpers.models import Chain, Stack, twin, wrap_children
from tests.helpers.scripted_prompt import IDS, INPUTS, Say, answers, line_of, masks, say
from tests.tracing.test_stored_run import Cached, Swallows, stored, weights_off

__all__ = ["masks", "say", "stored"]
Stored = Callable[..., nn.Module]
Pair = tuple[nn.Module, nn.Module]
CODE_COMMANDS = (
    *("l", "ll", "list", "u", "up", "d", "down", "n", "next", "s", "step", "w", "where", "bt", "r", "return"),
    *("until", "b", "tbreak", "j", "interact", "display", "run", "retval"),
)
CALL = f"models.py:{line_of('hidden = layer(hidden, mask=mask)')} forward"


@pytest.fixture
def stored_reference(masks: Pair, stored: Stored) -> Pair:
    return stored(masks[0], INPUTS), masks[1]


@pytest.fixture
def stored_candidate(masks: Pair, stored: Stored) -> Pair:
    return masks[0], stored(masks[1], INPUTS)


# What the two sides show.


def test_a_value_is_compared_with_what_is_stored_of_the_call(say: Say, stored_reference: Pair) -> None:
    said, report = say(stored_reference, INPUTS, "diff mask\nargs\nforce\n", at=("layers.0:enter",))
    heading = said.partition("(qtrace)")[0]
    assert re.search(rf"reference +{CALL} \(stored\)\ncandidate +{CALL}\n", heading)
    # The live side is the current one, and has its frame.
    assert "\n> candidate " in heading
    told = answers(said)
    lines = told["diff mask"].splitlines()
    assert lines[0].split() == f"reference {CALL} float32 [6,6] min -3.4e+38 max 0".split()
    assert lines[1].split() == f"candidate {CALL} int64 [1,6] min 1 max 1".split()
    assert lines[2] == "shapes differ; reference is a causal mask (additive), candidate all ones"
    assert "reference  float32  [6,6]  min -3.4e+38 max 0" in told["args"]
    assert "passed to the candidate: mask at layers.0:enter" in told["force"]
    assert report.outcome is Outcome.CLEAN


def test_the_stored_call_is_shown_where_its_frame_would_be(say: Say, stored_reference: Pair) -> None:
    said, _ = say(stored_reference, INPUTS, "ref\na\ncand\np type(self).__name__\n", at=("layers.1:exit",))
    told = answers(said)
    assert told["ref"] == told["a"]
    first, *others = told["ref"].splitlines()
    assert first == f"> reference, stored: layers.1 (Block), call #0, called at {CALL}"
    assert [line.split() for line in others] == [
        ["argument", "hidden", "float32", "[1,6,8]"],
        ["argument", "mask", "float32", "[6,6]"],
        ["output", "float32", "[1,6,8]"],
    ]
    assert told["p type(self).__name__"] == "'RawMask'\n"


def test_a_stored_candidate_is_shown_beside_the_live_reference(say: Say, stored_candidate: Pair) -> None:
    said, report = say(stored_candidate, INPUTS, "diff mask\ncand\np mask\nref\nup\nc\n", at=("layers.0:enter",))
    told = answers(said)
    assert "\n> reference " in said.partition("(qtrace)")[0]
    assert "candidate all ones" in told["diff mask"]
    assert told["cand"].startswith(f"> candidate, stored: layers.0 (Block), call #0, called at {CALL}\n")
    assert told["p mask"] == "tensor([[1, 1, 1, 1, 1, 1]])\n"
    assert told["up"] == "*** Oldest frame\n"
    assert report.outcome is Outcome.FAULT


def test_names_are_looked_for_in_the_calls_around(say: Say, stored_reference: Pair) -> None:
    said, _ = say(stored_reference, INPUTS, "diff mask\nref\np input.shape, mask.shape\np output is output\n"
                  "p [mask.shape for _ in range(2)]\np maks\nwhere2\n", at=("layers.0.query:enter",))  # fmt: skip
    told = answers(said)
    inside = f"models.py:{line_of('self.query(normed)')} forward"
    # Of an argument that is handed to a call around, it says which one.
    assert told["diff mask"].startswith(f"reference  {CALL}, into layers.0  float32  [6,6]")
    assert f"candidate  {inside} " in told["diff mask"]
    assert told["p input.shape, mask.shape"] == "(torch.Size([1, 6, 8]), torch.Size([6, 6]))\n"
    assert told["p output is output"] == "True\n"
    assert told["p [mask.shape for _ in range(2)]"] == "[torch.Size([6, 6]), torch.Size([6, 6])]\n"
    assert told["p maks"].startswith("*** NameError: the trace holds no maks here; did you mean mask")
    places = [line.partition("|")[0].strip() for line in told["where2"].splitlines()[1:]]
    assert places[-3:] == ["call of <root>", CALL, f"> {inside}"]


def test_a_wrapped_candidate_goes_by_the_names_of_what_it_wraps(say: Say, stored: Stored) -> None:
    reference = Stack()
    pair = reference, stored(wrap_children(reference), IDS)
    said, _ = say(pair, IDS, "diff hidden\ncand\np hidden.shape\nwhere2\n", at=("layers.0:enter",))
    told = answers(said)
    assert "equal" in told["diff hidden"]
    # The line of the wrapper, which only hands the call on, is not where it stands.
    assert f"called at {CALL}" in told["cand"]
    assert told["where2"].splitlines()[-1].split("|")[1].strip() == f"> {CALL}"
    assert told["p hidden.shape"] == "torch.Size([1, 6, 8])\n"


def test_objects_and_nested_outputs_have_a_line_a_leaf(say: Say, stored: Stored) -> None:
    reference = Cached()
    pair = stored(reference, torch.ones(1, 8)), twin(reference)
    said, _ = say(pair, torch.ones(1, 8), "ref\np cache['keys'].shape\nc\na\np sorted(output)\n",
                  at=("layers.2:enter", "<root>:exit"))  # fmt: skip
    told = answers(said)
    assert ["argument", "cache.keys", "float32", "[3,8]"] in [line.split() for line in told["ref"].splitlines()]
    assert told["p cache['keys'].shape"] == "torch.Size([3, 8])\n"
    assert ["output", "1.keys", "float32", "[4,8]"] in [line.split() for line in told["a"].splitlines()]
    assert told["p sorted(output)"] == "['0', '1.keys']\n"


def test_a_call_that_the_trace_is_past_is_shown_all_the_same(say: Say, stored: Stored) -> None:
    class InOrder(nn.Module):
        def __init__(self, *order: str) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abcd"})
            self.order = order

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = {name: self.layers[name](x) for name in self.order}
            out: torch.Tensor = made["a"] - made["b"] * made["c"] + made["d"]
            return out

    x = torch.randn(2, 4)
    reference, candidate = InOrder(*"abcd").eval(), InOrder(*"badc").eval()
    for at in ("layers.a:exit", "layers.b:exit", "layers.c:exit", "layers.d:exit"):
        module = at.partition(":")[0]
        said, _ = say((stored(reference, x), candidate), x, "ref\nout\nc\n", at=(at,))
        assert answers(said)["ref"].startswith(f"> reference, stored: {module} (Linear), call #0")
        assert "SQNR" in answers(said)["out"]
        said, _ = say((candidate, stored(reference, x)), x, "cand\nc\n", at=(at,))
        assert answers(said)["cand"].startswith(f"> candidate, stored: {module} (Linear), call #0")


def test_a_call_that_raised_says_so(say: Say, stored: Stored) -> None:
    reference = Swallows()
    pair = stored(reference, torch.ones(1, 8)), twin(reference)
    said, _ = say(pair, torch.ones(1, 8), "out\nforce\nref\np output\n", at=("second:exit#0",))
    told = answers(said)
    assert "the reference raised RuntimeError in it: mat1 and mat2" in said
    assert told["out"] == "nothing is compared: the reference raised in this call\n"
    assert told["force"] == "*** there is nothing to hand over: the reference raised in this call\n"
    assert "it raised RuntimeError: mat1 and mat2" in told["ref"]
    assert "NameError: the trace holds no output here" in told["p output"]


# Commands on a stored side.


@pytest.mark.parametrize("command", CODE_COMMANDS)
def test_what_needs_code_is_refused_in_one_sentence(say: Say, stored_reference: Pair, command: str) -> None:
    said, _ = say(stored_reference, INPUTS, f"ref\n{command}\np 'still here'\nq\n", at=("layers.0:enter",))
    assert answers(said)[command] == (
        f"*** {command}: the reference is a stored trace, so there is no code to list, to step or to walk in; "
        "`p NAME` shows what is recorded, and `cand` goes to the live side\n"
    )
    assert "'still here'" in said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("mask.dtype", "torch.float32\n"),
        ("!mask.shape", "torch.Size([6, 6])\n"),
        ("pp {'mask': mask.shape}", "{'mask': torch.Size([6, 6])}\n"),
        ("whatis mask", "<class 'torch.Tensor'>\n"),
        ("p", "*** an expression is wanted; recorded here: hidden, mask, output, ids, attention_mask\n"),
        ("p 1 / 0", "*** ZeroDivisionError: division by zero\n"),
        ("p None", "None\n"),
        ("p (", "*** SyntaxError"),
        ("raise RuntimeError('odd')", "*** RuntimeError: odd\n"),
        ("import sys; sys.exit(3)", "*** SystemExit: 3\n"),
        ("p exit(3)", "*** "),
        ("diff mask + 1 vs 1 + mask", "*** candidate"),
        ("diff hidden vs hidden * 2", "gain: factor 2"),
        ("ref", "this is the reference already\n"),
        ("out", "the call is about to run, so there is no output yet"),
        ("row", "the call is about to run, so there is no row yet"),
        ("help", "what is recorded of the call here"),
        ("help p", "Show the value of EXPR over the names"),
        ("help q", "End the run: no hook is left on the live model"),
        ("help force", "Let the candidate go on with the reference's tensors"),
        ("help nothing", "*** No help on nothing"),
    ],
)
def test_a_command_on_a_stored_side(say: Say, masks: Pair, stored: Stored, command: str, words: str) -> None:
    reference, candidate = masks
    candidate.mask = lambda hidden, attention_mask: None  # type: ignore[assignment]
    pair = stored(reference, INPUTS), candidate
    said, report = say(pair, INPUTS, f"ref\n{command}\np 'still ' 'here'\nc\n", at=("layers.0:enter",))
    assert words in answers(said)[command]
    assert "'still here'" in said
    assert report.error is None


def test_what_is_done_to_values_at_the_prompt_stays_there(say: Say, stored_reference: Pair) -> None:
    commands = "ref\nmine = mask.clone()\nmask.zero_()\np mine.sum() == mask.sum()\ncand\ndiff mine vs mask\nforce\n"
    said, report = say(stored_reference, INPUTS, commands, at=("layers.0:enter",))
    told = answers(said)
    assert told["mine = mask.clone()"] == ""
    assert told["p mine.sum() == mask.sum()"] == "tensor(False)\n"
    assert "float32  [6,6]  min -3.4e+38" in told["diff mine vs mask"]
    # What goes over, and what is compared, is what was stored.
    assert report.outcome is Outcome.CLEAN


def test_force_and_heal_work_from_the_stored_references_prompt(say: Say, stored: Stored) -> None:
    reference = Chain()
    candidate = weights_off(reference, "first.bias")
    pair, x = (stored(reference, torch.ones(2, 8)), candidate), torch.ones(2, 8)
    said, report = say(pair, x, "ref\nheal\n", at=("first:exit",))
    assert "passed to the candidate: output at first:exit\n" in said
    assert "output at first:exit; output at first:exit#1" in report.warnings[0]
    assert report.outcome is Outcome.CLEAN


@pytest.mark.parametrize("command", ["force", "heal"])
def test_a_stored_candidate_cannot_be_handed_anything(say: Say, stored_candidate: Pair, command: str) -> None:
    said, report = say(stored_candidate, INPUTS, f"{command}\ncand\n{command}\nc\n", at=("layers.0:enter",))
    words = "*** the candidate is a stored trace, which cannot go on with other tensors than those it holds\n"
    assert said.count(words) == 2
    assert report.warnings == ()


# Stepping, and where to stop.


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_the_live_side_is_stepped_while_the_stored_one_stands_still(say: Say, stored: Stored, side: str) -> None:
    model, x = Chain(), torch.randn(2, 8)
    trace = stored(model, x)
    pair = (model, trace) if side == "reference" else (trace, model)
    there, back = ("cand", "ref") if side == "reference" else ("ref", "cand")
    said, _ = say(pair, x, f"n\n{there}\n{back}\nn\np out.shape\nn\nn\n", at=("act:exit",))
    lines = [int(found) for found in re.findall(rf"> {side} .*models\.py\((\d+)\)forward", said)]
    first = line_of("hidden = self.act(self.first(x))")
    assert lines == [first, first + 1, first + 1, first + 2, first + 2]
    assert "torch.Size([2, 8])" in answers(said)["p out.shape"]
    assert ", stored: act (ReLU), call #0" in answers(said)[there]
    # The step that leaves the module brings both to its return.
    assert "<root> (Chain) has returned\nstopped by  the next call" in said


def test_conditions_and_faults_stop_beside_a_trace(say: Say, stored_reference: Pair) -> None:
    said, _ = say(stored_reference, INPUTS, "row\nq\n", when=("peir > 1e-3",))
    assert "layers.0.out (Linear) has returned\nstopped by  peir > 1e-3 holds" in said
    said, _ = say(stored_reference, INPUTS, "next-fault\nq\n", at=("embed:enter",))
    assert "layers.0 (Block) is about to run\nstopped by  a fault" in said


def test_a_pair_that_is_aligned_by_what_runs_stops_once(say: Say, stored: Stored) -> None:
    reference, x = Chain(), torch.randn(2, 8)
    candidate = Bypassing(copy.deepcopy(reference)).eval()
    for pair in ((stored(reference, x), candidate), (reference, stored(candidate, x))):
        said, report = say(pair, x, "continue\nquit\n", at=("first:enter#0",))
        assert said.count("is about to run") == 1
        assert report.coverage == qtrace.trace(pair[0], pair[1], x, local=False).coverage


class Requantized(nn.Module):
    """Keeps the float layer under its old name, and calls another one of that name elsewhere."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.first, self.act, self.second = chain.first, nn.ReLU(), chain.second
        self.quantized = nn.Module()
        self.quantized.second = copy.deepcopy(chain.second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.first(self.quantized.second(self.act(self.first(x))))  # type: ignore[operator]
        return out


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_part_that_is_aligned_by_what_runs_stays_that_part(say: Say, stored: Stored, side: str) -> None:
    reference, x = Chain(), torch.randn(2, 8)
    candidate = Requantized(copy.deepcopy(reference)).eval()
    if side == "reference":
        pair: Pair = (stored(reference, x, skip=["act"]), candidate)
    else:
        pair = (reference, stored(candidate, x, skip=["act"]))
    for report in (qtrace.trace(pair[0], pair[1], x, local=False), say(pair, x, "c\n", at=("second:enter",))[1]):
        assert report.coverage.reasons == {}
        assert report.unmatched == ()
        assert [row.module for row in report.rows] == ["first", "second", "first", ""]


@pytest.mark.parametrize("leave", ["quit\nn\n", "q\n", "EOF\nn\n", "exit\n", ""])
def test_quitting_at_a_stored_side_ends_the_run(say: Say, stored_reference: Pair, leave: str) -> None:
    said, report = say(stored_reference, INPUTS, f"ref\n{leave}", at=("layers.0:enter",))
    assert report.error == "ended at the prompt, at layers.0:enter"
    assert said.count("(qtrace) ") == 2
    assert qtrace.trace(*stored_reference, INPUTS, local=False).error is None


def test_two_traces_have_no_code_to_stop_in(stored: Stored) -> None:
    pair = stored(Chain(), torch.ones(1, 8)), stored(Chain(), torch.ones(1, 8))
    with pytest.raises(UsageError, match="both sides are stored traces, which have no code to stop in"):
        qtrace.trace(*pair, torch.ones(1, 8), breakpoints=["first"])


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_another_debugger_is_given_what_is_recorded(
    monkeypatch: pytest.MonkeyPatch, stored_reference: Pair, stored_candidate: Pair, side: str
) -> None:
    seen: list[dict[str, Any]] = []
    other = types.ModuleType("another_debugger")
    other.set_trace = lambda: seen.append(dict(sys._getframe(1).f_locals))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another_debugger", other)
    monkeypatch.setenv("PYTHONBREAKPOINT", "another_debugger.set_trace")
    pair = stored_reference if side == "reference" else stored_candidate
    qtrace.trace(*pair, INPUTS, local=False, breakpoints=["layers.0:enter"])
    at = {"reference": seen[0]["ref"], "candidate": seen[0]["cand"]}
    trace, live = at.pop(side), next(iter(at.values()))
    assert trace.frame is None
    assert sorted(trace.locals) == ["hidden", "mask", "output"]
    assert live.frame is not None
    assert [value.dtype for value in seen[0]["args"]["mask"]] == [torch.float32, torch.int64]


# Traces that hold less.


def test_without_arguments_outputs_are_all_there_is(say: Say, masks: Pair, stored: Stored) -> None:
    pair = stored(masks[0], INPUTS, Form(arguments=False)), masks[1]
    said, report = say(pair, INPUTS, "args\nforce\ndiff mask\nref\np input\ncand\nc\nout\nforce\n", at=("layers.0",))
    told = answers(said)
    lacking = "the stored reference holds no arguments (--outputs-only, or imported)"
    assert told["args"] == f"nothing is compared here: {lacking}\n"
    assert told["diff mask"] == (
        "*** reference: NameError: the trace holds no mask here; known: output "
        "(its arguments are not stored: --outputs-only, or imported)\n"
    )
    assert told["ref"].splitlines()[1:] == [
        "  output  float32 [1,6,8]",
        "its arguments are not stored (--outputs-only, or imported)",
    ]
    assert told["p input"].startswith("*** NameError: the trace holds no input here; ")
    assert "PEIR" in told["out"]
    assert f"*** there is nothing to hand over: {lacking}\n" in said
    assert "passed to the candidate: output at layers.0:exit" in told["force"]
    assert report.row("layers.0").peir is not None


def test_sketches_are_shown_and_compared_and_not_computed_with(say: Say, stored: Stored) -> None:
    reference = Stack(width=64)
    ids = torch.arange(16).repeat(1, 2)
    pair = stored(reference, ids, Form(sketches=True)), weights_off(reference, "layers.0.value.weight")
    said, _ = say(pair, ids, "out\nforce\nref\np output\np output.mean()\nx = output * 2\ndiff mask\n",
                  at=("layers.0:exit",))  # fmt: skip
    told = answers(said)
    assert "of each tensor only a sketch is stored (--stats-only)" in told["ref"]
    assert re.fullmatch(r"float32  \[1,32,64\]  min \S+ max \S+ \(a sketch\)\n", told["p output"])
    assert "reference  float32  [1,32,64]" in told["out"]
    assert "no relation" not in told["out"]
    assert told["force"] == (
        "*** there is nothing to hand over: of each tensor the stored reference holds only a sketch (--stats-only)\n"
    )
    refused = "*** of each tensor only a sketch is stored (--stats-only): a name by itself can be shown and compared"
    assert told["p output.mean()"].startswith(refused)
    assert told["x = output * 2"].startswith(refused)
    # No pattern is seen in a few elements.
    assert told["diff mask"].endswith("equal, as far as a sketch tells\n")


def test_a_module_that_is_not_in_the_trace_is_no_place_to_stop(say: Say, stored: Stored) -> None:
    reference = Stack()
    pair = stored(reference, IDS, only=["layers.1.**"]), twin(reference)
    said, report = say(pair, IDS, "q\n", at=("head",))
    assert said == ""
    assert (
        "--break 'head': the stored reference holds no calls of head; `qtrace show TRACE` lists what it holds"
    ) in report.warnings
    said, _ = say(pair, IDS, "where2\nq\n", at=("layers.1.query:enter",))
    assert said.startswith("\nlayers.1.query (Linear) is about to run\n")


def test_what_was_rounded_goes_over_as_it_is_stored(say: Say, stored: Stored) -> None:
    reference = Stack()
    pair = stored(reference, IDS, Form(cast="bfloat16")), weights_off(reference, "layers.0.value.weight")
    said, report = say(pair, IDS, "ref\nforce\n", at=("layers.0:exit",))
    assert "wider floats were rounded to bfloat16 (--as)" in answers(said)["ref"]
    assert 0 < (report.row("head").peir or 0.0) < 0.02
