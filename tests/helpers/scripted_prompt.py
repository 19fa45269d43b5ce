"""The debugger's prompt, run by commands from a file, and a small pair with the seed's kind of fault."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qtrace
from qtrace.debug import Debugger, Script, stop_request
from qtrace.tracing.api import Report
from tests.helpers.models import Stack, hooks_of, twin

IDS = torch.arange(6)[None]


class RawMask(Stack):
    """Hands the padding mask down as it is: the seed's case in small."""

    def mask(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        return attention_mask


def with_raw_mask(reference: nn.Module) -> nn.Module:
    made = twin(reference)
    made.__class__ = RawMask
    return made


Say = Callable[..., tuple[str, Report]]


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Return what runs a pair with commands from a file, and returns what the prompt said and the report."""

    def run(
        pair: tuple[nn.Module, nn.Module],
        inputs: Any,
        commands: str,
        *,
        at: tuple[str, ...] = (),
        when: tuple[str, ...] = (),
        local: bool = False,
    ) -> tuple[str, Report]:
        path = tmp_path / "commands.txt"
        path.write_text(commands)
        stops = stop_request(at, when)
        debugger = Debugger(stops.breakpoints(pair[0]), stops.conditions, script=Script(path))
        before = [hooks_of(model) for model in pair], sys.gettrace()
        try:
            report = qtrace.trace(*pair, inputs, local=local, breakpoints=debugger)
        finally:
            assert ([hooks_of(model) for model in pair], sys.gettrace()) == before
        return capsys.readouterr().out, report

    return run


@pytest.fixture
def masks() -> tuple[nn.Module, nn.Module]:
    reference = Stack()
    return reference, with_raw_mask(reference)


INPUTS = {"ids": IDS, "attention_mask": torch.ones_like(IDS)}


def answers(said: str) -> dict[str, str]:
    """Return what came after each command, by the command."""
    parts = said.split("(qtrace) ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def line_of(text: str) -> int:
    """Return the line of tests/models.py that holds a text."""
    lines = Path(__file__).with_name("models.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)
