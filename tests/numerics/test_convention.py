"""`into_candidate`: the reference's values as the candidate would hold them, and never the reference's memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.numerics.relations import into_candidate, undo_layout
from qtrace.report.records import Relation
from tests.helpers.relations import FINE, RELATED, Change, factors, related, table

_APPLICABLE = {"gain", "channel_gain", "permuted_channels", "halves"}


def handed_over(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor | None:
    relation = related(reference, candidate)
    assert relation is not None
    return into_candidate(relation, reference, candidate)


@pytest.mark.parametrize(("kind", "name", "change"), table(RELATED, FINE))
def test_what_can_be_applied_is(kind: str, name: str, change: Change) -> None:
    wanted = torch.randn(2, 42, 64)
    candidate = change(wanted)
    found = handed_over(wanted, candidate)
    if kind not in _APPLICABLE:
        assert found is None
        return
    assert found is not None
    torch.testing.assert_close(found, candidate)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)), st.sampled_from([(2, 3, 4, 5), (3, 1, 2, 5), (1, 4, 1, 2)]))
def test_every_layout_is_applied(order: list[int], shape: tuple[int, ...]) -> None:
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    candidate = wanted.permute(order).contiguous()
    if candidate.shape == wanted.shape:
        return
    undone = undo_layout(wanted, candidate)
    assert undone is not None
    found = into_candidate(undone[1], wanted, candidate)
    assert found is not None
    assert torch.equal(found, candidate)


@pytest.mark.parametrize("move", [lambda t: t.transpose(1, 2), lambda t: t.reshape(84, 2, 64), lambda t: t[..., None]])
def test_a_value_relation_is_applied_before_the_layout(move: Change) -> None:
    wanted = torch.randn(2, 84, 64)
    scales = factors(64)
    for changed in (wanted * 0.25, wanted * scales):
        candidate = move(changed).contiguous()
        undone = undo_layout(wanted, candidate)
        assert undone is not None
        relation = related(wanted, undone[0])
        assert relation is not None
        relation = replace(relation, parameters={**undone[1].parameters, **relation.parameters})
        found = into_candidate(relation, wanted, candidate)
        assert found is not None
        torch.testing.assert_close(found, candidate)


def test_shape_strides_and_dtype_are_the_candidates_and_the_memory_is_new() -> None:
    wanted = torch.randn(84, 64)
    candidate = (wanted.T * 0.5).contiguous().T.bfloat16()
    relation = Relation("gain", {"factor": 0.5})
    found = into_candidate(relation, wanted, candidate)
    assert found is not None
    assert found.dtype == torch.bfloat16
    assert found.stride() == candidate.stride()
    plain = into_candidate(Relation("layout", {"squeeze": [0]}), wanted, wanted[None])
    assert plain is not None
    plain.zero_()
    assert bool(wanted.any())


def test_gradients_do_not_follow() -> None:
    wanted = torch.randn(84, 64, requires_grad=True)
    found = into_candidate(Relation("gain", {"factor": 2.0}), wanted, wanted * 2)
    assert found is not None
    assert not found.requires_grad


def test_a_mask_takes_the_candidates_fill_or_becomes_bool() -> None:
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    masks = [torch.zeros(1, 1, 4, 4).masked_fill(~allowed, fill) for fill in (-math.inf, -1e9)]
    for reference in (*masks, allowed):
        for candidate in (*masks, allowed):
            if reference is candidate:
                continue
            found = handed_over(reference, candidate)
            assert found is not None
            assert torch.equal(found, candidate)


def test_what_is_allowed_is_the_references() -> None:
    fill = torch.full((1, 1, 4, 4), -1e9).triu(1)
    candidate = torch.full((1, 1, 4, 4), -math.inf).triu(1) + 0.25 * torch.eye(4)
    found = handed_over(fill, candidate)
    assert found is not None
    assert float(found[0, 0, 0, 0]) == 0.0
    assert float(found[0, 0, 0, 1]) == -math.inf


def test_a_relation_that_no_longer_holds_is_not_applied() -> None:
    wanted = torch.randn(84, 64)
    other = torch.randn(84, 64)
    for kind in ("channel_gain", "permuted_channels"):
        assert into_candidate(Relation(kind, {"axis": -1}), wanted, other) is None
        assert into_candidate(Relation(kind, {"axis": -1}), wanted, wanted.clone()) is None
    assert into_candidate(Relation("mask", {}), wanted, other) is None
    assert into_candidate(Relation("gain", {"factor": 2.0}), wanted, other[:40]) is None
    assert into_candidate(Relation("gain", {"factor": 2.0}), wanted, other.reshape(64, 84)) is None
