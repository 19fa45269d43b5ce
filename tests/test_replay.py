"""Isolation inside a container: it is run again by itself where that shows the same, and with the whole models else."""

from __future__ import annotations

import copy
from contextvars import ContextVar

import pytest
import torch
from torch import nn

import qtrace
from qtrace.diagnose import spliced
from qtrace.investigation import replay
from tests.test_diagnose import call, trial

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
    """Counts its own calls."""

    shift = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.ran = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ran += 1
        around = AROUND.set(self.shift)
        for block in self.blocks:
            x = block(x, scale=0.5)
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


def test_a_container_that_is_handed_too_much_runs_with_the_whole_models(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = two_faults()
    alone = passes(*pair)
    monkeypatch.setattr(replay, "_MOST_HELD", 100)
    assert passes(*pair) == alone + 1


def test_what_ran_alone_stands_where_the_whole_models_ran_it() -> None:
    whole = trial(call("a", 0.0, 0.0), call("b", 0.0, 0.2, call("b.inner", 0.0, 0.2)), call("c", 0.0, 0.0))
    alone = trial(call("b.inner", 0.0, 0.1))
    (root,) = alone.roots
    again = spliced(whole, type(whole)((root.children[0],)))
    inner = next(one for one in again.calls if one.module == "b.inner")
    assert [one.module for one in again.calls] == ["", "a", "b", "b.inner", "c"]
    assert (inner.entry, inner.outputs[0].error) == (1, 0.1)
