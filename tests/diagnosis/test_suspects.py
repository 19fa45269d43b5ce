"""Judging what passes showed: verdicts of rows, repeats of one fault, and when a second look is needed. No torch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qtrace.diagnosis.suspects import Suspect, containers_to_open, repeats, suspects, unaccounted
from qtrace.diagnosis.trial import CallRecord, Trial, Value, verdicts
from qtrace.report.records import Finding, Relation, Verdict


def value(name: str = "", error: float = 0.0, *, forced: bool = False, relation: str | None = None) -> Value:
    return Value(
        name, agrees=error <= 1e-6, forced=forced, error=error, relation=Relation(relation, {}) if relation else None
    )


def call(module: str, taken: float, given: float, *children: CallRecord, relation: str | None = None) -> CallRecord:
    """A call that took an argument with the error `taken` and returned an output with the error `given`."""
    return CallRecord(
        module,
        module.rstrip(".0123456789").rsplit(".", 1)[-1].title(),
        0,
        0,
        0,
        arguments=(value("x", taken),),
        outputs=(value("", given, relation=relation),),
        children=list(children),
    )


def trial(*children: CallRecord, given: float = 0.0) -> Trial:
    """A root that took clean arguments; calls are numbered as they ran."""
    order = 0

    def number(one: CallRecord) -> CallRecord:
        nonlocal order
        entry = order
        inside = [number(child) for child in one.children]
        order += 1
        return replace(one, entry=entry, order=order - 1, children=inside)

    return Trial((number(call("", 0.0, given, *children)),))


def judged(found: dict[tuple[str, int, str], Verdict]) -> dict[str, Verdict]:
    return {module: verdict for (module, _, _), verdict in found.items()}


def test_what_is_made_passed_on_and_amplified() -> None:
    found = trial(call("a", 0.0, 0.01), call("b", 0.01, 0.02), call("c", 0.001, 0.5), given=0.5)
    assert judged(verdicts(found)) == {
        "a": Verdict.INTRODUCED,
        "b": Verdict.INHERITED,
        "c": Verdict.AMPLIFIED,
        "": Verdict.INHERITED,
    }


def test_what_the_call_around_undoes_is_absorbed_however_deep() -> None:
    block = call("block", 0.0, 0.0, call("block.scaled", 0.0, 0.3, call("block.scaled.inner", 0.0, 0.3)))
    found = trial(block, call("late", 0.0, 0.1), given=0.1)
    assert judged(verdicts(found)) == {
        "block.scaled": Verdict.ABSORBED,
        "block.scaled.inner": Verdict.ABSORBED,
        "late": Verdict.INTRODUCED,
        "": Verdict.INHERITED,
    }


def test_a_call_that_is_handed_something_else_by_a_caller_that_was_right() -> None:
    found = trial(call("layers", 0.0, 0.4, call("layers.0", 0.7, 0.4), call("layers.1", 0.4, 0.4)), given=0.4)
    assert judged(verdicts(found)) == {
        "layers.0": Verdict.MISCALLED,
        "layers.1": Verdict.INHERITED,
        "layers": Verdict.INHERITED,
        "": Verdict.INHERITED,
    }


def test_findings_and_local_errors_say_more_than_the_arguments() -> None:
    found = trial(call("a", 0.0, 0.01), call("b", 0.01, 0.3), call("c", 0.3, 0.3), call("d", 0.3, 0.3), given=0.3)
    named = [
        Finding(rank=1, module="a", call=0, kind="introduces", summary="", members=("c",)),
        Finding(rank=2, module="x", call=0, kind="miscalls", summary="", callee="d", callees=("d",)),
    ]
    assert judged(verdicts(found, named, {("b", 0, ""): True})) == {
        "a": Verdict.INTRODUCED,
        "b": Verdict.INTRODUCED,
        "c": Verdict.INTRODUCED,
        "d": Verdict.MISCALLED,
        "": Verdict.INHERITED,
    }


def test_a_factor_is_a_gain_unless_it_was_named() -> None:
    found = trial(call("scaled", 0.0, 0.3, relation="gain"), given=0.3)
    assert judged(verdicts(found))["scaled"] is Verdict.GAIN
    named = [Finding(rank=1, module="scaled", call=0, kind="introduces", summary="")]
    assert judged(verdicts(found, named))["scaled"] is Verdict.INTRODUCED


def suspect(module: str, found: Trial, kind: str = "introduces") -> Suspect:
    return Suspect(kind, module, next(one for one in found.calls if one.module == module))


@pytest.fixture
def layers() -> Trial:
    return trial(*(call(f"layers.{n}", 0.0, 0.1, call(f"layers.{n}.act", 0.0, 0.1)) for n in range(4)), given=0.1)


def test_three_layers_with_one_fault_are_one_finding(layers: Trial) -> None:
    found = repeats([suspect(f"layers.{n}.act", layers) for n in (0, 2, 3)], layers)
    assert [(one.module, one.members) for one in found] == [("layers.0.act", ["layers.2.act", "layers.3.act"])]


def test_two_layers_of_four_are_two_faults(layers: Trial) -> None:
    found = repeats([suspect(f"layers.{n}.act", layers) for n in (0, 2)], layers)
    assert [one.modules for one in found] == [("layers.0.act",), ("layers.2.act",)]


def test_both_layers_of_two_are_one_finding() -> None:
    found = trial(*(call(f"layers.{n}", 0.0, 0.1) for n in range(2)), given=0.1)
    assert len(repeats([suspect(f"layers.{n}", found) for n in range(2)], found)) == 1


def test_other_reasons_or_places_are_no_repeats(layers: Trial) -> None:
    named = [suspect(f"layers.{n}.act", layers) for n in range(4)]
    assert len(repeats(named, layers, lambda one: one.module)) == 4
    mixed = [*named[:2], suspect("layers.2", layers), suspect("layers.3", layers, "miscalls")]
    assert len(repeats(mixed, layers)) == 4


def test_one_fault_is_told_from_the_pass_that_forced_everything() -> None:
    first = trial(
        call("a", 0.0, 0.1, call("a.bad", 0.0, 0.1)), call("b", 0.1, 0.1, call("b.fine", 0.1, 0.1)), given=0.1
    )
    forced = trial(call("a", 0.0, 0.0, call("a.bad", 0.0, 0.1)), call("b", 0.0, 0.0, call("b.fine", 0.0, 0.0)))
    assert unaccounted(forced, first, containers_to_open(first)) == set()
    assert [one.module for one in suspects(forced, containers_to_open(first))] == ["a.bad"]


def test_a_second_fault_behind_the_first_needs_a_look_of_its_own() -> None:
    first = trial(call("a", 0.0, 0.1, call("a.bad", 0.0, 0.1)), call("b", 0.1, 0.2, call("b.bad", 0.1, 0.2)), given=0.2)
    forced = trial(call("a", 0.0, 0.0, call("a.bad", 0.0, 0.1)), call("b", 0.0, 0.0, call("b.bad", 0.0, 0.1)))
    assert unaccounted(forced, first, containers_to_open(first)) == {"b"}


def test_what_came_out_right_needs_no_look_inside() -> None:
    first = trial(call("folded", 0.0, 0.0, call("folded.scaled", 0.0, 0.3)), call("bad", 0.0, 0.1), given=0.1)
    forced = trial(call("folded", 0.0, 0.3, call("folded.scaled", 0.0, 0.3)), call("bad", 0.0, 0.1))
    assert unaccounted(forced, first, containers_to_open(first)) == set()
