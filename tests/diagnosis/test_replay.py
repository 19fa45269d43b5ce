"""Isolation inside a container: it is run again by itself where that shows the same, and with the whole models else."""

from __future__ import annotations

import copy
import itertools
from contextvars import ContextVar
from dataclasses import replace

import pytest
import torch
from torch import nn

import qtrace
from qtrace.diagnosis import replay
from qtrace.diagnosis.trial import CallRecord, Trial, spliced
from tests.diagnosis.test_suspects import call, trial

AROUND = ContextVar("AROUND", default=0.0)


class Block(nn.Module):
    """Two linears; beside its arguments it minds what the code around has set."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
        hidden = torch.tanh(self.up(x + AROUND.get()))
        return x + self.down(hidden if scale is None else hidden * scale)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Counts its own calls; what its last block minds is set around that block alone."""

    shift = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.ran = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ran += 1
        for block in self.blocks[:-1]:
            x = block(x, scale=0.5)
        around = AROUND.set(self.shift)
        x = self.blocks[-1](x, scale=0.5)
        AROUND.reset(around)
        return x


def two_faults() -> tuple[Stack, Stack, torch.Tensor]:
    torch.manual_seed(0)
    reference = Stack().eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.blocks[1].down.bias[3] += 0.3  # type: ignore[union-attr, index, operator]
        candidate.blocks[3].up.weight[5].neg_()  # type: ignore[union-attr, index]
    return reference, candidate, torch.randn(2, 7, 16)


def passes(reference: Stack, candidate: Stack, x: torch.Tensor) -> int:
    """Check that both faults are named, and return how often the whole reference ran for it."""
    found = {finding.module for finding in qtrace.trace(reference, candidate, x).findings}
    assert found == {"blocks.1.down", "blocks.3.up"}
    ran, reference.ran = reference.ran, 0
    return ran


def test_a_second_fault_is_isolated_by_its_container_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = two_faults()
    with_replay = passes(*pair)
    monkeypatch.setattr(replay.Replays, "covering", lambda *_: set())
    assert with_replay == passes(*pair) - 1


def test_a_container_that_minds_more_than_its_arguments_runs_with_the_whole_models() -> None:
    reference, candidate, x = two_faults()
    alone = passes(reference, candidate, x)
    reference.shift = candidate.shift = 0.5
    assert passes(reference, candidate, x) == alone + 1


def test_what_the_candidate_alone_minds_is_not_lost_in_a_replay() -> None:
    reference, candidate, x = two_faults()
    candidate.shift = 0.5
    with torch.no_grad():
        candidate.blocks[3].up.weight[5].neg_()  # type: ignore[union-attr, index]
    found = {(finding.module, finding.kind) for finding in qtrace.trace(reference, candidate, x).findings}
    assert found == {("blocks.1.down", "introduces"), ("blocks.3", "miscalls")}


def test_a_container_that_is_handed_too_much_runs_with_the_whole_models(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = two_faults()
    alone = passes(*pair)
    monkeypatch.setattr(replay, "_MOST_HELD", 100)
    assert passes(*pair) == alone + 1


def test_what_ran_alone_stands_where_the_whole_models_ran_it() -> None:
    whole = trial(call("a", 0.0, 0.0), call("b", 0.0, 0.2, call("b.inner", 0.0, 0.2)), call("c", 0.0, 0.0))
    (root,) = trial(call("b.inner", 0.0, 0.1)).roots
    again = spliced(whole, Trial(tuple(root.children)))
    inner = next(one for one in again.calls if one.module == "b.inner")
    assert [one.module for one in again.calls] == ["", "a", "b", "b.inner", "c"]
    assert (inner.entry, inner.outputs[0].error) == (1, 0.1)


def test_what_comes_after_recognises_what_a_replay_returned() -> None:
    whole = numbered(trial(call("a", 0.0, 0.2, call("a.inner", 0.0, 0.2)), call("b", 0.2, 0.2)), first=10)
    (root,) = numbered(trial(call("a", 0.0, 0.1, call("a.inner", 0.0, 0.1))), first=20).roots
    again = spliced(whole, Trial(tuple(root.children)))
    before, after = ({one.module: one for one in found.calls} for found in (whole, again))
    for name in ("a", "b"):
        assert [value.key for value in after[name].outputs] == [value.key for value in before[name].outputs]
    assert after["a.inner"].outputs[0].key == root.children[0].children[0].outputs[0].key


def numbered(found: Trial, first: int) -> Trial:
    """Give every value a key of its own."""
    keys = itertools.count(first)

    def of(one: CallRecord) -> CallRecord:
        arguments = tuple(replace(value, key=next(keys)) for value in one.arguments)
        outputs = tuple(replace(value, key=next(keys)) for value in one.outputs)
        return replace(one, arguments=arguments, outputs=outputs, children=[of(child) for child in one.children])

    return Trial(tuple(of(root) for root in found.roots))
