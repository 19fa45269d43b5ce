"""One call of one module is told of, whatever the model does; no hook is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qtrace.engine.events import Bound
from qtrace.engine.hooks import run_with_probe
from tests.helpers.models import Chain, hooks_of


class Heard:
    def __init__(self) -> None:
        self.begun: list[Bound] = []
        self.ended: list[Any] = []

    def begin(self, arguments: Bound) -> None:
        self.begun.append(arguments)

    def end(self, value: Any) -> None:
        self.ended.append(value)


def test_the_call_with_the_number_is_told_of_and_all_are_counted() -> None:
    model, given = Chain(), torch.randn(2, 8)
    for index, told in ((0, 1), (1, 1), (2, 0)):
        heard = Heard()
        assert run_with_probe(model.first, index, heard, lambda: model(given)) == 2
        assert len(heard.begun) == len(heard.ended) == told
    heard = Heard()
    run_with_probe(model.first, 1, heard, lambda: model(given))
    assert torch.equal(heard.ended[0], model(given))
    assert list(heard.begun[0].values) == ["input"]


def test_a_module_that_calls_itself_is_told_of_once() -> None:
    class Nested(nn.Module):
        def forward(self, depth: int) -> int:
            return depth if depth == 0 else self(depth - 1) + 1

    for index, depth in ((0, 3), (1, 2), (3, 0)):
        heard = Heard()
        assert run_with_probe(Nested(), index, heard, lambda: Nested()(0)) == 0
        model = Nested()
        assert run_with_probe(model, index, heard, lambda model=model: model(3)) == 4  # type: ignore[misc]
        assert heard.begun[0].values == {"depth": depth}
        assert heard.ended == [depth]


def test_what_the_module_raises_is_raised_and_the_end_is_told() -> None:
    class Raises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("too bad")

    model, heard = Raises(), Heard()
    with pytest.raises(ValueError, match="too bad"):
        run_with_probe(model, 0, heard, lambda: model(torch.ones(1)))
    assert heard.ended == [None]
    assert hooks_of(model)[""] == 0
