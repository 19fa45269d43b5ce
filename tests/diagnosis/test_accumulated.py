"""Who is at fault, judged by one pass without forcing. No torch."""

from __future__ import annotations

from dataclasses import replace

from qtrace.diagnosis.accumulated_errors import accumulated
from qtrace.diagnosis.trial import CallRecord, Trial, Value
from qtrace.report.records import Relation, Status, TensorSpec

TENSOR, NONE = TensorSpec((2,), "float32"), TensorSpec(None, None, "NoneType", "None")


def value(name: str, error: float, key: int, rel_l2: float = 0.5, **more: object) -> Value:
    made = Value(name, agrees=error <= 1e-6, error=error, rel_l2=rel_l2 if error else 0.0, key=key)
    return replace(made, **{"reference": TENSOR, "candidate": TENSOR, **more})  # type: ignore[arg-type]


class Tree:
    """Builds a trial; every value has a key of its own unless one is given."""

    def __init__(self) -> None:
        self._keys = iter(range(1000, 2000))
        self._left = 0

    def call(self, module: str, taken: dict[str, float | Value], given: float | Value, *inside: str) -> CallRecord:
        arguments = [v if isinstance(v, Value) else value(n, v, next(self._keys)) for n, v in taken.items()]
        output = given if isinstance(given, Value) else value("", given, next(self._keys))
        entry, self._left = self._left, self._left + 1
        kind = module.rsplit(".", 1)[-1].rstrip("0123456789").title()
        return CallRecord(module, kind, 0, entry, self._left - 1, tuple(arguments), (output,))


def rooted(*children: CallRecord, given: float = 0.5) -> Trial:
    arguments = (value("ids", 0.0, 1),)
    return Trial((CallRecord("", "Net", 0, 0, 99, arguments, (value("", given, 2),), children=list(children)),))


def named(trial: Trial) -> list[tuple[str, str, str | None, tuple[str, ...]]]:
    return [(s.kind, s.module, s.argument, tuple(s.callees)) for s in accumulated(trial)]


def right(tree: Tree, *names: str) -> list[CallRecord]:
    return [tree.call(name, {"x": 0.0}, 0.0) for name in names]


def test_the_leaf_that_errs_first_is_named_and_what_comes_of_it_is_not() -> None:
    tree = Tree()
    children = [*right(tree, "a", "b"), tree.call("c", {"x": 0.0}, 0.3), tree.call("d", {"x": 0.3}, 0.4)]
    assert named(rooted(*children)) == [("introduces", "c", None, ())]


def test_a_container_whose_children_are_right_errs_by_itself() -> None:
    tree = Tree()
    inner = tree.call("a", {"x": 0.0}, 0.3)
    inner.children.extend(right(tree, "a.p", "a.q"))
    assert named(rooted(inner)) == [("introduces", "a", None, ())]


def test_what_is_undone_inside_a_container_that_is_right_is_nobodys_fault() -> None:
    tree = Tree()
    inner = tree.call("a", {"x": 0.0}, 0.0)
    inner.children.append(tree.call("a.scaled", {"x": 0.0}, 0.4))
    assert named(rooted(inner, tree.call("b", {"x": 0.0}, 0.5))) == [("introduces", "b", None, ())]


def test_a_wrong_argument_is_the_callers_fault_and_all_who_are_handed_it_are_named() -> None:
    tree = Tree()
    mask = value("mask", 0.9, 7)
    layers = [
        tree.call("layers.0", {"x": 0.0, "mask": mask}, 0.2),
        tree.call("layers.1", {"x": 0.2, "mask": mask}, 0.3),
    ]
    assert named(rooted(*right(tree, "embed"), *layers)) == [("miscalls", "", "mask", ("layers.0", "layers.1"))]


def test_of_several_wrong_arguments_the_one_that_is_there_on_both_sides_is_named() -> None:
    tree = Tree()
    absent = Value("positions", False, status=Status.STRUCTURE_MISMATCH, reference=NONE, candidate=TENSOR, key=8)
    mask = Value("mask", False, status=Status.SHAPE_MISMATCH, reference=TENSOR, candidate=TENSOR, key=7)
    layer = tree.call("layers.0", {"positions": absent, "mask": mask}, 0.2)
    assert named(rooted(layer)) == [("miscalls", "", "mask", ("layers.0",))]
    alone = tree.call("layers.0", {"positions": absent}, 0.2)
    assert named(rooted(alone)) == [("miscalls", "", "positions", ("layers.0",))]


def test_an_argument_that_an_earlier_error_made_is_not_blamed_on_the_caller() -> None:
    tree = Tree()
    children = [tree.call("a", {"x": 0.0}, 0.4), tree.call("b", {"x": 0.0, "scale": 0.2}, 0.3)]
    assert named(rooted(*children)) == [("introduces", "a", None, ())]


def test_where_differing_is_the_rule_nobody_is_named() -> None:
    tree = Tree()
    noise = [tree.call(f"linear{n}", {"x": 0.0}, value("", 0.01, 50 + n, rel_l2=0.01)) for n in range(4)]
    assert named(rooted(*right(tree, "embed"), *noise)) == []


def test_a_small_error_at_the_very_beginning_may_be_noise() -> None:
    tree = Tree()
    small, later = value("", 0.01, 50, rel_l2=0.01), tree.call("b", {"x": 0.01}, 0.02)
    assert named(rooted(tree.call("a", {"x": 0.0}, small), later)) == []
    before = right(tree, "p", "q", "r")
    assert named(rooted(*before, tree.call("a", {"x": 0.0}, small), later)) == [("introduces", "a", None, ())]
    nan = replace(small, status=Status.NON_FINITE, error=None, rel_l2=None)
    assert named(rooted(tree.call("a", {"x": 0.0}, nan), later)) == [("non_finite", "a", None, ())]


def test_what_may_be_a_convention_comes_after_what_is_wrong() -> None:
    tree = Tree()
    gain = value("", 0.5, 50, relation=Relation("gain", {"factor": 2.0}))
    children = [*right(tree, "p"), tree.call("a", {"x": 0.0}, gain), tree.call("b", {"y": 0.0}, 0.4)]
    assert [suspect.module for suspect in accumulated(rooted(*children))] == ["b", "a"]


def test_a_run_that_agrees_names_nobody() -> None:
    assert named(rooted(*right(Tree(), "a", "b"), given=0.0)) == []


def test_what_one_side_leaves_out_hides_nothing_of_another_shape_further_in() -> None:
    tree = Tree()
    types = Value("types", False, status=Status.REFERENCE_ONLY, reference=TENSOR, key=9)
    mask = Value("mask", False, status=Status.SHAPE_MISMATCH, reference=TENSOR, candidate=TENSOR, key=7)
    text = tree.call("text", {"x": 0.0, "types": types}, 0.4)
    text.children.extend([*right(tree, "text.embed"), tree.call("text.layer", {"mask": mask}, 0.3)])
    # An argument that one side does not have is no evidence by itself; what is made further in is.
    assert named(rooted(text)) == [("miscalls", "text", "mask", ("text.layer",))]
    number = replace(mask, status=Status.COMPARED, error=0.5)
    text.children[-1] = tree.call("text.layer", {"mask": number}, 0.3)
    assert named(rooted(text)) == [("miscalls", "text", "mask", ("text.layer",))]


def test_an_output_that_the_candidate_returns_besides_is_no_fault() -> None:
    tree = Tree()
    vision = tree.call("vision", {"x": 0.0}, 0.0)
    more = Value("more", False, status=Status.CANDIDATE_ONLY, candidate=TENSOR, key=90)
    vision = replace(vision, outputs=(*vision.outputs, more), children=right(tree, "vision.a"))
    assert named(rooted(vision, tree.call("head", {"x": 0.0}, 0.4))) == [("introduces", "head", None, ())]


def test_a_layout_that_goes_in_and_comes_out_is_the_candidates_own() -> None:
    def turned(name: str, key: int, candidate: tuple[int, ...]) -> Value:
        specs = TensorSpec((280, 4), "int64"), TensorSpec(candidate, "int64")
        return Value(name, False, status=Status.SHAPE_MISMATCH, reference=specs[0], candidate=specs[1], key=key)

    tree = Tree()
    positions = tree.call("positions", {"ids": turned("ids", 50, (4, 280))}, turned("", 51, (4, 280)))
    assert named(rooted(*right(tree, "p"), positions)) == []
    other = tree.call("positions", {"ids": turned("ids", 50, (4, 279))}, turned("", 51, (4, 280)))
    assert named(rooted(*right(tree, "p"), other)) == [("miscalls", "", "ids", ("positions",))]
