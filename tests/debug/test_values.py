"""Where to stop, in words: breakpoints, conditions and what they make of odd rows; what a mask is called."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from qtrace.debug.breakpoints import Condition, is_condition, parse_place, resolve, why_not_reached
from qtrace.debug.values import mask_words
from qtrace.engine.events import Call
from qtrace.errors import UsageError
from qtrace.report.records import Row, Status

PATHS = {path: path for path in ("", "layers", "layers.0", "layers.0.up", "layers.1", "layers.1.up", "head")}


def row(**values: Any) -> Row:
    told: dict[str, Any] = {"status": Status.COMPARED, **values}
    return Row(module="a", call=2, output="", type="Linear", order=5, **told)


def call(path: str, index: int = 0) -> Call:
    return Call(path, path, "Linear", index, "")


@pytest.mark.parametrize(
    ("text", "met", "missed"),
    [
        ("head", [("enter", call("head")), ("exit", call("head", 3))], [("enter", call("layers.0"))]),
        ("head:enter", [("enter", call("head"))], [("exit", call("head"))]),
        ("head#1", [("enter", call("head", 1)), ("exit", call("head", 1))], [("enter", call("head"))]),
        ("layers.*:exit#0", [("exit", call("layers.1"))], [("exit", call("layers.1.up")), ("enter", call("layers.1"))]),
        ("**.up:enter", [("enter", call("layers.0.up"))], [("enter", call("head"))]),
        ("<root>:exit", [("exit", call(""))], [("exit", call("head"))]),
    ],
)
def test_a_breakpoint_is_where_its_words_say(
    text: str, met: list[tuple[str, Call]], missed: list[tuple[str, Call]]
) -> None:
    breakpoint = resolve(parse_place(text), PATHS)
    assert str(breakpoint.place) == text
    assert all(breakpoint.is_at(event, one) for event, one in met)
    assert not any(breakpoint.is_at(event, one) for event, one in missed)


def test_a_second_name_of_a_module_means_that_module() -> None:
    breakpoint = resolve(parse_place("tied:enter"), {**PATHS, "tied": "head"})
    assert breakpoint.is_at("enter", call("head"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--break '': expected MODULE[:enter|exit][#call], as in 'model.layers.0:exit#1'"),
        ("head:entry", "--break 'head:entry': 'entry' is no event of a call; did you mean enter?"),
        ("head:", "--break 'head:': '' is no event of a call; known: enter, exit"),
        ("head#first", "--break 'head#first': 'first' is no call number; calls of a module count from #0"),
        ("head#-1", "--break 'head#-1': '-1' is no call number; calls of a module count from #0"),
    ],
)
def test_a_malformed_breakpoint_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_place(text)
    assert str(error.value) == words


def test_a_breakpoint_that_matches_nothing_names_near_modules() -> None:
    with pytest.raises(UsageError, match=r"--break 'layer.\*' matches no module; near: layers"):
        resolve(parse_place("layer.*"), PATHS)


@pytest.mark.parametrize(
    ("text", "calls", "words"),
    [
        ("layers", {}, "'layers': the reference never calls layers; `qtrace modules` lists what is called"),
        ("head#2", {"head": 2}, "'head#2': the reference calls head 2 times, so the last call is #1"),
        ("head#2", {"head": 1}, "'head#2': the reference calls head once, so the last call is #0"),
        (
            "head",
            {"head": 1},
            "'head': both sides never stand at head together; --only or --skip leaves it out, or it has no partner, "
            "and `qtrace modules` tells why",
        ),
    ],
)
def test_a_breakpoint_that_was_not_reached_says_why(text: str, calls: dict[str, int], words: str) -> None:
    assert why_not_reached(resolve(parse_place(text), PATHS), Counter(calls)) == f"--break {words}"


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("peir > 1e-3", {"peir": 2e-3}, True),
        ("peir > 1e-3", {"peir": 1e-3}, False),
        ("accumulated>=.001", {"peir": 1e-3}, True),
        ("1e-6 < peir < 1e-3", {"peir": 1e-4}, True),
        ("1e-6 < peir < 1e-3", {"peir": 1e-2}, False),
        ("peir > 1 or max > 3 and mean > 1", {"peir": 0.0, "max": 4.0, "mean": 2.0}, True),
        ("(peir > 1 or max > 3) and mean > 1", {"peir": 2.0, "max": 0.0, "mean": 0.5}, False),
        ("sqnr < 40", {"sqnr_db": 12.0}, True),
        ("call == 2 and order != 4", {}, True),
        ("min > -1", {"min": 0.0}, True),
        ("peir > received", {"peir": 0.2, "peir_in": 0.1}, True),
        ("type == Linear", {}, True),
        ("'Linear' != type", {}, False),
        ("status == compared", {}, True),
        ("status == non_finite", {"status": Status.NON_FINITE}, True),
    ],
)
def test_a_condition_is_what_it_reads_like(text: str, values: dict[str, Any], expected: bool) -> None:
    assert Condition(text).holds(row(**values)) is expected


@pytest.mark.parametrize("text", ["peir > 1e-3", "peir <= 1e-3", "peir != 0", "peir == peir"])
def test_a_number_that_does_not_exist_satisfies_nothing(text: str) -> None:
    assert Condition(text).holds(row(status=Status.SHAPE_MISMATCH)) is None


def test_what_is_known_decides_beside_what_is_not() -> None:
    odd = row(status=Status.SHAPE_MISMATCH)
    assert Condition("peir > 1 or status == shape_mismatch").holds(odd) is True
    assert Condition("peir > 1 and status == compared").holds(odd) is False
    assert Condition("peir > 1 or status == compared").holds(odd) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at its end: expected a column"),
        ("peir", "at its end: expected a comparison (<, <=, >, >=, ==, !=) after peir"),
        ("peir >", "at its end: expected a number after >"),
        ("peir >> 1e-3", "at column 7 (>): expected a number after >"),
        ("peir > 1e-3 max", "at column 13 (max): expected 'and', 'or' or the end"),
        ("peir > 1 and", "at its end: expected a column"),
        ("(peir > 1", "at its end: expected ')'"),
        ("pier > 1", "at column 1 (pier): pier is no column; did you mean peir"),
        ("peir > 1e", "at column 8 (1): expected a number after >"),
        ("peir = 1", "at column 6 (=): expected a comparison"),
        ("__import__('os') > 1", "at column 11 ((): expected a comparison (<, <=, >, >=, ==, !=) after __import__"),
        ("verdict == equal", "at column 1 (verdict): verdict is known only when the run is over"),
        ("introduced > 1", "introduced is known only when the run is over"),
        ("status == nan", "at column 11 (nan): nan is no status; "),
        ("status > 3", "at column 10 (3): status is a word, and this is none"),
        ("status > compared", "status is a word: it can be == or != to another"),
        ("1 < 2", "no column is compared here"),
    ],
)
def test_a_malformed_condition_points_at_the_place(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        Condition(text)
    assert str(error.value).startswith(f"--break-when {text!r}: ")
    assert words in str(error.value)
    assert str(error.value).endswith("a condition reads like 'peir > 1e-3 and max > 0.1'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("peir > 1e-3", True), ("(max>1) or x", True), ("status != compared", True), ("1e-6<peir", True)]
    + [(text, False) for text in ("<root>", "<root>:exit", "layers.*:enter#2", "**.[!a]x", "head")],
)
def test_in_python_conditions_are_told_from_places(text: str, expected: bool) -> None:
    assert is_condition(text) is expected


def additive(blocked: torch.Tensor, fill: float = torch.finfo(torch.float32).min) -> torch.Tensor:
    return torch.zeros(blocked.shape).masked_fill(blocked, fill)


FUTURE = torch.ones(6, 6, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False] * 4 + [True] * 2, [False] * 6])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (additive(FUTURE)[None, None], "a causal mask (additive)"),
        (additive(FUTURE, float("-inf")), "a causal mask (additive)"),
        (additive(FUTURE[2:]), "a causal mask (additive)"),
        (~FUTURE, "a causal mask (bool)"),
        ((~FUTURE).long(), "a causal mask (of 0 and 1)"),
        (additive(FUTURE | torch.ones(6, 6).tril(-3).bool()), "a causal mask with a window of 3 (additive)"),
        (additive(FUTURE | PADDED[:, None, None]), "a causal mask with padding (additive)"),
        (additive(PADDED[:, None, None].expand(2, 1, 6, 6)), "a padding mask that blocks 2 of 12 (additive)"),
        ((~PADDED).long(), "a padding mask that blocks 2 of 12 (of 0 and 1)"),
        (~PADDED.flip(1), "a padding mask that blocks 2 of 12 (bool)"),
        (additive(torch.tensor([[False, True, False, True]])), "a mask that blocks 2 of 4 (additive)"),
        (additive(FUTURE) + 0.5 * ~FUTURE, "a causal mask (additive, with other values beside the fill)"),
        (torch.ones(1, 6, dtype=torch.int64), "all ones"),
        (torch.zeros(6, 6), "all zeros"),
        (torch.full((3,), 2.5), "all 2.5"),
        (torch.ones(4, dtype=torch.bool), "all True"),
    ],
)
def test_a_mask_is_called_what_it_does(mask: torch.Tensor, words: str) -> None:
    assert mask_words(mask) == words


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 4),
        torch.arange(6),
        torch.tensor([[1, 0, 1, 0]]),
        torch.tensor([True, False, True]),
        torch.zeros(0, 4),
        torch.empty(3, 3, device="meta"),
    ],
)
def test_other_tensors_are_no_masks(tensor: torch.Tensor) -> None:
    assert mask_words(tensor) is None


def test_one_entry_off_is_another_mask() -> None:
    blocked = FUTURE.clone()
    blocked[0, 1] = False
    assert mask_words(additive(blocked)) == "a mask that blocks 14 of 36 (additive)"
    blocked[0, 1] = blocked[3, 0] = True
    assert mask_words(additive(blocked)) == "a causal mask that blocks 1 more (additive)"
