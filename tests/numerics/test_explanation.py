"""`PairComparer.explain`: how a pair that does not agree is related, and what that excuses."""

from __future__ import annotations

import math

import pytest
import torch

from qtrace.engine import pair as pair_module
from qtrace.engine.pair import Pair, PairComparer
from qtrace.numerics.relations import CONVENTIONS, DELIBERATE, DESCRIPTIONS, excuses
from qtrace.report.records import Relation, Status
from tests.helpers.relations import FINE, RELATED, UNRELATED, Change, factors, related, rotated, table

TOLERANCE = 1e-5


def explained(reference: torch.Tensor, candidate: torch.Tensor, *, brief: bool = False) -> Pair:
    comparer = PairComparer()
    pair = comparer.compare(reference, candidate, brief=brief)
    assert pair is not None
    comparer.explain(pair, reference, candidate, TOLERANCE)
    return pair


def test_every_kind_is_either_a_convention_or_a_description() -> None:
    assert not CONVENTIONS & DESCRIPTIONS
    assert DELIBERATE < CONVENTIONS
    assert {kind for part in (RELATED, FINE) for kind in part} | {"layout", "mask", "where", "masked_positions"} == (
        CONVENTIONS | DESCRIPTIONS
    )
    assert not excuses(None)


@pytest.mark.parametrize(("kind", "name", "change"), table(RELATED, FINE))
def test_a_convention_leaves_an_error_and_a_description_excuses_nothing(kind: str, name: str, change: Change) -> None:
    wanted = torch.randn(2, 42, 64)
    pair = explained(wanted, change(wanted))
    assert pair.relation is not None
    assert pair.relation.kind == kind
    if kind in CONVENTIONS:
        assert pair.convention is pair.relation
        related_error = pair.peir_related()
        assert related_error is not None
        assert related_error < 1e-6
    else:
        assert pair.convention is None
        assert pair.peir_related() is None


def test_what_has_no_relation_is_told_by_its_place() -> None:
    wanted = torch.randn(2, 42, 64)
    candidate = wanted.clone()
    candidate[..., 17] *= -1
    pair = explained(wanted, candidate)
    assert pair.relation is not None
    assert pair.relation.kind == "where"
    assert pair.relation.parameters["indices"] == [[17, 17]]
    assert pair.peir_related() is None
    assert explained(wanted, torch.randn_like(wanted)).relation is None


def test_a_relation_is_found_within_another_layout_and_tells_both() -> None:
    wanted = torch.randn(2, 84, 64)
    scales = factors(64)
    pair = explained(wanted, (wanted * scales).transpose(1, 2).contiguous())
    assert pair.relation is not None
    assert pair.relation.kind == "channel_gain"
    assert pair.relation.parameters["permute"] == [0, 2, 1]
    assert pair.relation.parameters["max"] == pytest.approx(2.3, rel=1e-5)


def test_evidence_within_a_layout_leaves_the_layout_as_the_convention() -> None:
    wanted = torch.randn(2, 84, 64)
    pair = explained(wanted, wanted.clamp(-1.0, 1.0).transpose(1, 2).contiguous())
    assert pair.relation is not None
    assert pair.relation.kind == "clipped"
    assert pair.convention is not None
    assert pair.convention.kind == "layout"
    assert pair.peir_related() == pair.statistics().peir


def test_a_pair_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*_: object) -> Relation | None:
        calls.append(1)
        return None

    monkeypatch.setattr(pair_module, "explanation", counted)
    comparer = PairComparer()
    wanted, candidate = torch.randn(84, 64), torch.randn(84, 64)
    for _ in range(3):
        pair = comparer.compare(wanted, candidate)
        assert pair is not None
        comparer.explain(pair, wanted, candidate, TOLERANCE)
    assert len(calls) == 1
    candidate.add_(1)
    pair = comparer.compare(wanted, candidate)
    assert pair is not None
    comparer.explain(pair, wanted, candidate, TOLERANCE)
    assert len(calls) == 2


def test_a_relation_that_is_known_stays() -> None:
    wanted = torch.randn(84, 64)
    pair = explained(wanted, wanted / 8)
    assert pair.relation is not None
    assert pair.relation.parameters["name"] == "1/8"


def test_a_brief_pair_gets_all_its_numbers() -> None:
    wanted = torch.randn(84, 64)
    candidate = wanted.clone()
    candidate[40:] += 1e-4
    pair = explained(wanted, candidate, brief=True)
    assert not pair.is_brief()
    assert pair.statistics().cosine is not None
    assert pair.relation is not None
    assert (pair.relation.kind, pair.relation.parameters["from"]) == ("where", 40)


def test_integers_and_bools_are_explained_too() -> None:
    positions = torch.arange(84)[None]
    pair = explained(positions, positions + 1)
    assert pair.relation is not None
    assert (pair.relation.kind, pair.peir_related()) == ("shifted", None)
    allowed = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    pair = explained(allowed, torch.zeros(1, 1, 8, 8).masked_fill(~allowed, -math.inf))
    assert pair.relation is not None
    assert (pair.relation.kind, pair.peir_related()) == ("mask", 0.0)


def test_what_cannot_be_related_is_left_as_it_is() -> None:
    wanted = torch.randn(84, 64)
    candidate = wanted * factors(64)
    candidate[3, 3] = math.nan
    pair = explained(wanted, candidate)
    assert (pair.relation, pair.statistics().status) == (None, Status.NON_FINITE)
    assert explained(torch.empty(0, 8), torch.empty(0, 8)).relation is None
    other = explained(torch.randn(6, 8), torch.randn(6, 7))
    assert (other.relation, other.statistics().status) == (None, Status.SHAPE_MISMATCH)


def test_plain_values_and_other_devices_are_not_explicable() -> None:
    comparer = PairComparer()
    number = comparer.compare(3, 4)
    assert number is not None
    assert not comparer.is_explicable(number, 3, 4)
    wanted, candidate = torch.randn(84, 64), torch.randn(84, 64)
    pair = comparer.compare(wanted, candidate)
    assert pair is not None
    assert comparer.is_explicable(pair, wanted, candidate)
    assert not comparer.is_explicable(pair, wanted, candidate.to("meta"))
    comparer.explain(pair, wanted, candidate, TOLERANCE)
    assert not comparer.is_explicable(pair, wanted, candidate)


def test_neither_side_is_written_to() -> None:
    wanted = torch.randn(2, 42, 64)
    changes = [*UNRELATED.values(), *(change for _, _, change in table(RELATED, FINE))]
    for change in changes:
        candidate = change(wanted).contiguous()
        before = wanted.clone(), candidate.clone()
        explained(wanted, candidate)
        assert torch.equal(wanted, before[0])
        assert torch.equal(candidate, before[1])


@pytest.mark.parametrize(("tokens", "channels"), [(84, 64), (23, 64), (60, 200)])
def test_scaled_channels_that_were_rotated_are_found(tokens: int, channels: int) -> None:
    normed = torch.nn.functional.normalize(torch.randn(tokens, channels), dim=-1) * channels**0.5
    weight = 1 + 0.15 * torch.randn(channels)
    relation = related(normed * weight, rotated(normed))
    assert relation is not None
    assert relation.kind == "rotation"
    assert relation.parameters["min"] == pytest.approx(float((1 / weight).min()), rel=1e-2)
    assert relation.error is not None
    assert relation.error < 1e-6


def test_scales_need_more_inner_products_than_channels() -> None:
    wanted = torch.randn(22, 64)
    assert related(wanted, rotated(wanted * factors(64))) is None


@pytest.mark.parametrize("damaged", [1, 10, 31])
def test_few_scaled_channels_that_were_rotated_are_damage(damaged: int) -> None:
    wanted = torch.randn(84, 64)
    scales = torch.ones(64)
    scales[:damaged] = factors(damaged) + 0.05
    assert related(wanted, rotated(wanted * scales)) is None


def test_scaled_and_rotated_tokens_of_which_one_is_wrong_are_not_related() -> None:
    wanted = torch.randn(84, 64)
    candidate = rotated(wanted * factors(64))
    candidate[7] = candidate[7].roll(1)
    assert related(wanted, candidate) is None
    assert related(wanted, rotated(wanted * factors(64)) + 0.01 * torch.randn(84, 64)) is None


def test_very_wide_tensors_are_not_asked_for_rotations() -> None:
    for channels, found in ((4095, "rotation"), (4097, None)):
        wanted = torch.randn(6, channels)
        signs = torch.randint(0, 2, (channels,)) * 2 - 1
        relation = related(wanted, wanted.flip(-1) * signs)
        assert (relation.kind if relation is not None else None) == found
