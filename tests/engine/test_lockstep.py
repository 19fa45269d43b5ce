"""The pairing of two event streams, without any model: scripted sides, and random call trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.engine import lockstep
from qtrace.engine.events import Bound, Call, End, Enter, Event, Exit, Replacement
from qtrace.engine.lockstep import Lockstep

Tree = tuple[str, tuple["Tree", ...]]


class ScriptedSide:
    """Yields the events of a forest of calls."""

    def __init__(self, *forest: Tree) -> None:
        self.calls: list[Call] = []
        self.closed = False
        self._forest = forest
        self._events: Iterator[Event] = iter(())

    def start(self, function: Callable[[], Any]) -> Event:
        self._events = self._walk()
        return next(self._events)

    def step(self, reply: Replacement | None = None) -> Event:
        return next(self._events)

    def close(self) -> None:
        self.closed = True

    def _walk(self) -> Iterator[Event]:
        for tree in self._forest:
            yield from self._call(tree)
        yield End()

    def _call(self, tree: Tree) -> Iterator[Event]:
        name, children = tree
        call = Call(name, name, "T", len(self.calls), "")
        self.calls.append(call)
        yield Enter(call, Bound({"x": len(self.calls)}, ("x",), frozenset({"x"})))
        for child in children:
            yield from self._call(child)
        yield Exit(call, name)


@dataclass
class Recorder:
    entered_pairs: list[tuple[Call, Call]] = field(default_factory=list)
    left_pairs: list[tuple[Call, Call]] = field(default_factory=list)
    lone: list[tuple[int, Call]] = field(default_factory=list)

    def entered(self, reference: Enter, candidate: Enter) -> None:
        self.entered_pairs.append((reference.call, candidate.call))

    def left(self, reference: Exit, candidate: Exit) -> None:
        assert reference.error is None
        assert candidate.error is None
        self.left_pairs.append((reference.call, candidate.call))

    def alone(self, side: int, event: Exit) -> None:
        self.lone.append((side, event.call))

    def names(self) -> list[str | None]:
        return [reference.key for reference, _ in self.left_pairs]


def leaf(name: str) -> Tree:
    return name, ()


def run(reference: list[Tree], candidate: list[Tree]) -> tuple[Recorder, ScriptedSide, ScriptedSide]:
    sides = ScriptedSide(*reference), ScriptedSide(*candidate)
    recorder = Recorder()
    Lockstep(*sides, recorder).run(lambda: None, lambda: None)
    assert all(side.closed for side in sides)
    return recorder, *sides


@pytest.fixture
def frozen_entries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the calls whose arguments were copied to a shelf."""
    names: list[str] = []
    original = lockstep._frozen_entry

    def remember(event: Enter) -> Enter:
        names.append(str(event.call.key))
        return original(event)

    monkeypatch.setattr(lockstep, "_frozen_entry", remember)
    return names


def test_same_order_copies_nothing(frozen_entries: list[str]) -> None:
    tree = ("root", (("block", (leaf("a"), leaf("b"), leaf("a"))), leaf("head")))
    recorder, *_ = run([tree], [tree])
    assert recorder.names() == ["a", "b", "a", "block", "head", "root"]
    assert recorder.lone == []
    assert frozen_entries == []


def test_another_order_inside_one_parent_pairs_every_call() -> None:
    recorder, *_ = run(
        [("root", (leaf("q"), leaf("k"), leaf("v")))],
        [("root", (leaf("k"), leaf("v"), leaf("q")))],
    )
    assert sorted(map(str, recorder.names())) == ["k", "q", "root", "v"]
    assert recorder.lone == []


@pytest.mark.parametrize("missing_on", [0, 1])
def test_a_call_without_partner_shelves_no_more_than_its_neighbours(missing_on: int, frozen_entries: list[str]) -> None:
    layers: list[Tree] = [(f"layer{i}", (leaf(f"n{i}"), leaf(f"m{i}"))) for i in range(30)]
    whole: Tree = ("root", tuple(layers))
    without: Tree = ("root", (*layers[:2], ("layer2", (leaf("m2"),)), *layers[3:]))
    trees = ([whole], [without]) if missing_on else ([without], [whole])
    recorder, *_ = run(*trees)
    assert [(side, call.key) for side, call in recorder.lone] == [(1 - missing_on, "n2")]
    assert len(recorder.left_pairs) == 30 * 3
    assert len(frozen_entries) <= 3


def test_what_comes_after_the_partner_stands_at_the_exit_is_not_copied(frozen_entries: list[str]) -> None:
    extra: Tree = ("root", (leaf("a"), *[leaf(f"x{i}") for i in range(50)]))
    recorder, *_ = run([("root", (leaf("a"),))], [extra])
    assert len(recorder.lone) == 50
    assert frozen_entries == []


def test_calls_pair_inside_their_parent_only() -> None:
    # The first block lacks its call of the shared module: the second block's call must not slip into its place.
    recorder, reference, candidate = run(
        [("root", (("block0", (leaf("act"),)), ("block1", (leaf("act"),))))],
        [("root", (("block0", ()), ("block1", (leaf("act"),))))],
    )
    acts = [(r.index, c.index) for r, c in recorder.left_pairs if r.key == "act"]
    assert acts == [(reference.calls[4].index, candidate.calls[3].index)]
    assert [(side, call.index) for side, call in recorder.lone] == [(0, reference.calls[2].index)]


def test_a_parent_that_the_candidate_bypasses_does_not_hide_its_children() -> None:
    recorder, *_ = run(
        [("root", (("mlp", (leaf("gate"), leaf("down"))), leaf("norm")))],
        [("root", (leaf("gate"), leaf("down"), leaf("norm")))],
    )
    assert sorted(map(str, recorder.names())) == ["down", "gate", "norm", "root"]
    assert [call.key for _, call in recorder.lone] == ["mlp"]


def test_a_call_that_one_side_is_still_inside_pairs_when_the_other_comes_to_it() -> None:
    inside: Tree = ("block", (leaf("a"), leaf("b"), leaf("c"), leaf("d")))
    recorder, *_ = run([("root", (leaf("x"), leaf("y"), inside))], [("root", (inside, leaf("y"), leaf("x")))])
    assert sorted(map(str, recorder.names())) == ["a", "b", "block", "c", "d", "root", "x", "y"]
    assert recorder.lone == []


def test_no_root_in_common_reports_every_call_alone() -> None:
    recorder, *_ = run([leaf("a"), leaf("b")], [leaf("c")])
    assert recorder.left_pairs == []
    assert sorted((side, str(call.key)) for side, call in recorder.lone) == [(0, "a"), (0, "b"), (1, "c")]


names = st.sampled_from("abcd")
trees: st.SearchStrategy[Tree] = st.recursive(
    st.tuples(names, st.just(())),
    lambda inner: st.tuples(names, st.lists(inner, max_size=4).map(tuple)),
    max_leaves=16,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(trees, max_size=3), st.lists(trees, max_size=3))
def test_every_call_is_told_once_and_in_order(reference: list[Tree], candidate: list[Tree]) -> None:
    recorder, first, second = run([("root", tuple(reference))], [("root", tuple(candidate))])
    told = [r.index for r, _ in recorder.left_pairs] + [c.index for side, c in recorder.lone if side == 0]
    assert sorted(told) == [call.index for call in first.calls]
    told = [c.index for _, c in recorder.left_pairs] + [c.index for side, c in recorder.lone if side == 1]
    assert sorted(told) == [call.index for call in second.calls]
    assert all(r.key == c.key for r, c in recorder.left_pairs)
    assert set(recorder.entered_pairs) == set(recorder.left_pairs)


@settings(max_examples=200, deadline=None)
@given(st.lists(trees, max_size=4), st.randoms(use_true_random=False))
def test_equal_trees_pair_completely_and_shuffled_siblings_too(forest: list[Tree], random: Any) -> None:
    recorder, *_ = run([("root", tuple(forest))], [("root", tuple(forest))])
    assert recorder.lone == []
    distinct: list[Tree] = [(f"s{i}", (tree,)) for i, tree in enumerate(forest)]
    shuffled = list(distinct)
    random.shuffle(shuffled)
    recorder, *_ = run([("root", tuple(distinct))], [("root", tuple(shuffled))])
    assert recorder.lone == []
