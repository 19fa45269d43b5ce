"""`Forcing` at related boundaries: the reference's values as they are, or in the candidate's own convention."""

from __future__ import annotations

import math

import pytest
import torch

from qtrace.engine.events import Bound, Call, Enter, Exit
from qtrace.engine.forcing import IN, OUT, Forcing, LeafPairs
from qtrace.engine.pair import CallPair, PairComparer
from tests.helpers.relations import FINE, RELATED, UNRELATED, Change, factors, rotated, table

PATH = "block.norm"
HERE = frozenset({PATH})
RAW = Forcing(entries=HERE, exits=HERE)
CONVERTED = Forcing(entries=HERE, exits=HERE, converted=HERE)
ELSEWHERE = Forcing(entries=HERE, exits=HERE, converted=frozenset({"block.other"}))
APPLICABLE = {"gain", "channel_gain", "permuted_channels", "halves"}


def a_call() -> Call:
    return Call(PATH, PATH, "Norm", 0, "block")


def pairs_of(reference: torch.Tensor, candidate: torch.Tensor, name: str = "") -> LeafPairs:
    comparer = PairComparer()
    pair = comparer.compare(reference, candidate)
    assert pair is not None
    if not torch.equal(reference.reshape(-1), candidate.reshape(-1).to(reference.dtype)):
        comparer.explain(pair, reference, candidate, 1e-5)
    return [(name, reference, candidate, pair)]


def at_exit(forcing: Forcing, reference: torch.Tensor, candidate: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return what the candidate goes on with, and whether that counts as the reference's."""
    met = CallPair(a_call(), a_call())
    done = forcing.outputs(met, Exit(a_call(), candidate), pairs_of(reference, candidate))
    return candidate if done is None else done.value, OUT in met.forced


def at_entry(forcing: Forcing, reference: torch.Tensor, candidate: torch.Tensor) -> tuple[torch.Tensor, bool]:
    met = CallPair(a_call(), a_call())
    bound = Bound({"x": candidate}, ("x",), frozenset({"x"}))
    entered = Enter(a_call(), bound, (candidate,))
    done = forcing.arguments(met, entered, pairs_of(reference, candidate, "x"))
    return candidate if done is None else done.value[0][0], IN + "x" in met.forced


AT = pytest.mark.parametrize("at", [at_exit, at_entry])


@AT
@pytest.mark.parametrize("forcing", [RAW, ELSEWHERE])
@pytest.mark.parametrize(("kind", "name", "change"), table(RELATED, FINE))
def test_the_references_values_go_over_as_they_are(at, forcing, kind, name, change) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(2, 42, 64)
    candidate = change(wanted)
    handed, forced = at(forcing, wanted, candidate)
    assert forced
    assert torch.equal(handed, wanted.to(candidate.dtype))
    handed.zero_()
    assert bool(wanted.any())


@AT
@pytest.mark.parametrize(("kind", "name", "change"), table(RELATED, FINE))
def test_a_converted_boundary_keeps_the_candidates_convention(at, kind, name, change) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(2, 42, 64)
    candidate = change(wanted)
    before = candidate.clone()
    handed, forced = at(CONVERTED, wanted, candidate)
    assert forced == (kind in {*APPLICABLE, "rotation"})
    torch.testing.assert_close(handed, before)
    # What excuses nothing is left alone: nobody knows in which convention the right values would be.
    assert (handed is candidate) == (kind not in APPLICABLE)
    if handed is not candidate:
        handed.zero_()
        assert bool(wanted.any())


@AT
def test_what_is_handed_over_is_the_references_and_not_the_candidates_rounding(at) -> None:  # type: ignore[no-untyped-def]
    wanted, scales = torch.randn(84, 64), factors(64)
    candidate = wanted * scales * (1 + 1e-6 * torch.randn(84, 64))
    handed, forced = at(CONVERTED, wanted, candidate)
    assert forced
    assert float((handed - wanted * scales).abs().max()) < 0.5 * float((candidate - wanted * scales).abs().max())


@AT
def test_a_rotation_is_solved_for_where_the_tokens_tell_it(at) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(400, 32)
    turned = rotated(wanted)
    candidate = turned + 1e-7 * torch.randn_like(turned)
    handed, forced = at(CONVERTED, wanted, candidate)
    assert forced
    assert handed is not candidate
    assert float((handed - turned).norm()) < 0.6 * float((candidate - turned).norm())
    few, forced = at(CONVERTED, wanted[:40], candidate[:40])
    assert forced
    assert torch.equal(few, candidate[:40])


@AT
@pytest.mark.parametrize("name", ["noise", "other values", "one channel flipped", "one channel scaled", "a bias"])
def test_without_a_relation_a_converted_boundary_is_left_alone(at, name) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(2, 42, 64)
    candidate = UNRELATED[name](wanted)
    handed, forced = at(CONVERTED, wanted, candidate)
    assert handed is candidate
    assert not forced
    handed, forced = at(RAW, wanted, candidate)
    assert forced
    assert torch.equal(handed, wanted)


@AT
def test_what_agrees_is_handed_over_at_a_converted_boundary_too(at) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(2, 42, 64)
    handed, forced = at(CONVERTED, wanted, wanted.clone())
    assert forced
    assert torch.equal(handed, wanted)
    assert handed is not wanted


@AT
@pytest.mark.parametrize(
    ("change", "excused"),
    [(lambda t: t * 0.25, True), (lambda t: t * factors(64), True), (lambda t: t.clamp(-1, 1), False)],
)
def test_another_layout_is_the_candidates_in_any_case(at, change: Change, excused: bool) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(2, 84, 64)
    candidate = change(wanted).transpose(1, 2).contiguous()
    handed, forced = at(RAW, wanted, candidate)
    assert forced
    assert torch.equal(handed, wanted.transpose(1, 2))
    handed.zero_()
    assert bool(wanted.any())
    handed, forced = at(CONVERTED, wanted, candidate)
    assert forced
    torch.testing.assert_close(handed, candidate if excused else wanted.transpose(1, 2))


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    return allowed, torch.zeros(1, 1, 4, 4).masked_fill(~allowed, -math.inf)


@AT
@pytest.mark.parametrize("forcing", [RAW, CONVERTED])
def test_a_mask_keeps_its_meaning_in_the_candidates_kind(at, forcing) -> None:  # type: ignore[no-untyped-def]
    allowed, additive = masks()
    for wanted, candidate in ((allowed, additive), (additive, allowed), (additive, additive.clamp(min=-1e9))):
        handed, forced = at(forcing, wanted, candidate)
        assert forced
        assert handed is not candidate
        assert torch.equal(handed, candidate)


def test_a_mask_of_another_pattern_is_not_cast_to_the_other_kind() -> None:
    allowed, additive = masks()
    other = allowed.transpose(-1, -2).contiguous()
    handed, forced = at_entry(RAW, additive, other)
    assert forced
    assert torch.equal(handed, additive)
    handed, forced = at_exit(RAW, additive, other)
    assert handed is other
    assert not forced


def test_a_mask_of_another_pattern_goes_over_at_a_converted_boundary_too() -> None:
    wanted = masks()[1].clamp(min=-1e9)
    handed, forced = at_entry(CONVERTED, wanted, torch.zeros_like(wanted))
    assert forced
    assert torch.equal(handed, wanted)


class Scaled(torch.Tensor):
    """Stands for a tensor that holds its values quantized: a subclass with a meaning of its own."""


@AT
@pytest.mark.parametrize("forcing", [RAW, CONVERTED])
def test_tensors_of_a_class_of_their_own_are_left_alone(at, forcing) -> None:  # type: ignore[no-untyped-def]
    wanted = torch.randn(84, 64)
    candidate = (wanted * factors(64)).as_subclass(Scaled)
    for pair in ((wanted, candidate), (candidate, wanted)):
        handed, forced = at(forcing, *pair)
        assert handed is pair[1]
        assert not forced


def test_an_in_place_module_is_forced_into_what_it_wrote_to() -> None:
    wanted, scales = torch.randn(84, 64), factors(64)
    candidate = wanted * scales * (1 + 1e-6 * torch.randn(84, 64))
    before = candidate.clone()
    met = CallPair(a_call(), a_call(), argument_ids={id(candidate)})
    pairs = pairs_of(wanted, candidate)
    assert CONVERTED.outputs(met, Exit(a_call(), candidate), pairs) is None
    assert met.forced == {OUT}
    assert not torch.equal(candidate, before)
    torch.testing.assert_close(candidate, wanted * scales)
    kept = wanted.clone()
    candidate.zero_()
    assert torch.equal(wanted, kept)


def test_other_calls_are_left_alone() -> None:
    wanted = torch.randn(84, 64)
    elsewhere = Forcing(entries={"block"}, exits={"block"}, converted={"block"})
    for at in (at_exit, at_entry):
        handed, forced = at(elsewhere, wanted, wanted * 2)
        assert torch.equal(handed, wanted * 2)
        assert not forced
