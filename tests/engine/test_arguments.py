"""Arguments pair by what they are: name, position, form and value, however they are passed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtrace.engine.events import MISSING, Bound, match_arguments

HIDDEN, MASK, COS, SIN = torch.randn(2, 5, 8), torch.ones(2, 5), torch.randn(1, 5, 4), torch.randn(1, 5, 4)


def bound(*positional: tuple[str, Any], **keywords: Any) -> Bound:
    values = {**dict(positional), **keywords}
    return Bound(values, tuple(name for name, _ in positional), frozenset(values))


def paired(reference: Bound, candidate: Bound) -> dict[str, Any]:
    return {name: (mine, theirs) for name, mine, theirs in match_arguments(reference, candidate)}


def test_a_renamed_keyword_pairs_with_a_positional_argument() -> None:
    found = paired(bound(("x", HIDDEN)), bound(hidden=HIDDEN))
    assert list(found) == ["x"]
    assert found["x"] == (HIDDEN, HIDDEN)


def test_a_tuple_pairs_with_its_tensors_passed_apart() -> None:
    found = paired(bound(x=HIDDEN, position_embeddings=(COS, SIN)), bound(x=HIDDEN, sin=SIN.clone(), cos=COS.clone()))
    assert torch.equal(found["position_embeddings.0"][1], COS)
    assert torch.equal(found["position_embeddings.1"][1], SIN)
    assert len(found) == 3


def test_a_mask_of_bools_pairs_with_an_additive_one() -> None:
    additive = torch.zeros(2, 5).masked_fill(MASK == 0, -1e9)
    found = paired(bound(x=HIDDEN, attention_mask=additive), bound(x=HIDDEN, keep=MASK.bool()))
    assert found["attention_mask"][1].dtype is torch.bool


def test_two_equal_constants_are_not_told_apart_by_value() -> None:
    reference = bound(x=HIDDEN, first=MASK, second=MASK.clone())
    candidate = bound(x=HIDDEN, b=MASK.clone(), a=MASK.clone())
    found = paired(reference, candidate)
    # Both are of one form and hold the same: the order decides.
    assert found["first"][1] is candidate.values["b"]
    assert found["second"][1] is candidate.values["a"]


def test_an_argument_of_one_side_alone_stands_against_nothing() -> None:
    found = paired(bound(x=HIDDEN, position_embeddings=(COS, SIN)), bound(x=HIDDEN))
    assert [theirs for _, theirs in found.values()] == [HIDDEN, MISSING]
    found = paired(bound(x=HIDDEN), bound(x=HIDDEN, table=COS))
    assert found["table"] == (MISSING, COS)


def test_a_position_does_not_pair_a_mask_with_a_cosine() -> None:
    found = paired(bound(("hidden_states", HIDDEN), ("mask", MASK)), bound(("x", HIDDEN), ("cos", COS), ("m", MASK)))
    assert found["mask"] == (MASK, MASK)
    assert found["cos"] == (MISSING, COS)


@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 4))
def test_distinct_tensors_find_their_partners_under_any_names(order: list[str], positional: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(3, 4, generator=generator) for name in "abcd"}
    reference = bound(*tensors.items())
    given_so = [(f"other_{name}", tensors[name].clone()) for name in order]
    candidate = bound(*given_so[:positional], **dict(given_so[positional:]))
    if positional:
        # Positions pair first, where the forms agree; the rest pairs by value.
        candidate = bound(**dict(given_so))
    found = paired(reference, candidate)
    assert all(torch.equal(mine, theirs) for mine, theirs in found.values())
    assert set(found) == set("abcd")


@pytest.mark.parametrize("name", ["x", "y"])
def test_one_name_on_both_sides_pairs_whatever_it_holds(name: str) -> None:
    found = paired(bound(**{name: HIDDEN}), bound(**{name: None}, more=HIDDEN))
    assert found[name] == (HIDDEN, None)
