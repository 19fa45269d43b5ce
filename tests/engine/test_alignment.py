"""Alignment by name: the rules, and names that lie."""

from __future__ import annotations

from qtrace.engine.align import Alignment, ModuleInfo, align


def infos(*paths: str, **attributes: str) -> list[ModuleInfo]:
    return [ModuleInfo(path, "M", {}) for path in ("", *paths)]


def pairs(alignment: Alignment) -> dict[str, tuple[str, str]]:
    return {c: (p.reference, p.rule) for c, p in alignment.pairs.items() if c}


def test_same_names() -> None:
    found = align(infos("a", "a.b"), infos("a", "a.b", "a.b.quantizer"))
    assert pairs(found) == {"a": ("a", "exact"), "a.b": ("a.b", "exact")}
    assert found.alone == ()


def test_wrapper_components_are_dropped_and_both_layers_answer() -> None:
    found = align(
        infos("model", "model.q"),
        infos("wrapped", "wrapped.model", "wrapped.model.wrapped.q", "wrapped.model.wrapped.q.wrapped"),
    )
    assert pairs(found) == {
        "wrapped.model": ("model", "stripped"),
        "wrapped.model.wrapped.q": ("model.q", "stripped"),
        "wrapped.model.wrapped.q.wrapped": ("model.q", "stripped"),
    }


def test_the_attribute_that_keeps_the_float_name_wins() -> None:
    candidate = [
        ModuleInfo("", "M"),
        ModuleInfo("w.model.q.inner", "Q", {"fp_name": "model.q", "act": "relu"}),
        ModuleInfo("w.model.k.inner", "Q", {"fp_name": "model.k", "act": "relu"}),
    ]
    found = align(infos("model", "model.q", "model.k", "relu"), candidate)
    assert pairs(found) == {
        "w.model.q.inner": ("model.q", "name_attribute"),
        "w.model.k.inner": ("model.k", "name_attribute"),
    }
    assert set(found.alone) == {"model", "relu"}


def test_an_attribute_that_names_another_module_by_chance_is_not_believed() -> None:
    candidate = [ModuleInfo("", "M"), ModuleInfo("mlp", "M", {"activation": "relu"}), ModuleInfo("relu", "M")]
    assert pairs(align(infos("mlp", "relu"), candidate)) == {
        "mlp": ("mlp", "exact"),
        "relu": ("relu", "exact"),
    }


def test_a_tree_moved_below_a_wrapper_shifts_even_where_exact_names_exist() -> None:
    reference = infos("model", "model.embed", "model.layers.0", "model.norm", "head")
    candidate = infos(
        "model", "model.model", "model.model.embed", "model.model.layers.0", "model.model.norm", "model.head"
    )
    found = pairs(align(reference, candidate))
    # By exact name the candidate's `model` would be taken for the reference's inner model.
    assert found["model"] == ("", "prefix")
    assert found["model.model"] == ("model", "prefix")
    assert found["model.head"] == ("head", "prefix")


def test_a_tree_lifted_out_of_its_parent() -> None:
    found = pairs(align(infos("model", "model.a", "model.b", "head"), infos("a", "b")))
    assert found == {"a": ("model.a", "prefix"), "b": ("model.b", "prefix")}


def test_nothing_in_common() -> None:
    found = align(infos("a", "b"), infos("c", "d"))
    assert pairs(found) == {}
    assert found.alone == ("a", "b")
