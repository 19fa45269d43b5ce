"""Which of the candidate's modules the operator view looks into, where it is not the one of the same name."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from qtrace.diagnosis.operators import compare_operators
from qtrace.errors import UsageError
from tests.engine.test_alignment_weights import Bypassing
from tests.helpers.models import Chain, Stack, hooks_of, twin


def test_a_module_that_is_bypassed_is_not_looked_into() -> None:
    reference = Chain()
    candidate = Bypassing(copy.deepcopy(reference)).eval()
    before = hooks_of(reference), hooks_of(candidate)
    view = compare_operators(reference, candidate, torch.randn(2, 8), "second")
    assert view.candidate == "replacement"
    assert view.agrees
    assert (hooks_of(reference), hooks_of(candidate)) == before


def test_names_that_the_user_gives_are_followed() -> None:
    reference = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    candidate = nn.Sequential(OrderedDict(x=nn.Linear(4, 4), y=nn.Linear(4, 4)))
    view = compare_operators(reference, candidate, torch.randn(2, 4), "b", rename={"y": "b", "x": "a"})
    assert view.candidate == "y"
    with pytest.raises(UsageError, match="--rename q=b: the candidate has no module q"):
        compare_operators(reference, candidate, torch.randn(2, 4), "b", rename={"q": "b"})


def test_a_module_without_a_call_or_a_partner_is_named() -> None:
    reference = Chain()
    with pytest.raises(UsageError, match="the reference's unused is never called on these inputs"):
        compare_operators(reference, twin(reference), torch.randn(2, 8), "unused")

    class Bare(nn.Module):
        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": ids.float()}

    with pytest.raises(UsageError, match="no module of the candidate answers to it"):
        compare_operators(Stack(), Bare(), torch.arange(6)[None], "head")
