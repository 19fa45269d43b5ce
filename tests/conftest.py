"""What every test gets: one thread, a fixed seed, and a check that no hook of ours outlives it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from qtrace.engine.live_side import LiveSide
from tests.helpers.models import own_hooks_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_hook_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test after which a traced model still has a hook of ours."""
    seen: list[Mapping[str, torch.nn.Module]] = []
    original = LiveSide.__init__

    def remember(self: LiveSide, modules: Mapping[str, torch.nn.Module], *args: Any, **kwargs: Any) -> None:
        seen.append(modules)
        original(self, modules, *args, **kwargs)

    monkeypatch.setattr(LiveSide, "__init__", remember)
    yield
    assert [own_hooks_of(modules) for modules in seen] == [[] for _ in seen], "a hook of qtrace outlived the run"
